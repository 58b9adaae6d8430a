//! Which virtual paths are canonical: `nexus.lib.paths` has the rules, and what becomes of others.

const MAX_PATH_BYTES: usize = 4096;
const MAX_NAME_BYTES: usize = 255;

/// Whether a path is in canonical form and may be used as it is.
pub fn is_canonical(path: &str) -> bool {
    if path == "/" {
        return true;
    }
    path.len() <= MAX_PATH_BYTES && path.strip_prefix('/').is_some_and(has_canonical_names)
}

fn has_canonical_names(relative: &str) -> bool {
    let bytes = relative.as_bytes();
    let mut start = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'/' => {
                if !is_name(&bytes[start..at]) {
                    return false;
                }
                start = at + 1;
            }
            0x00..0x20 | 0x7f => return false,
            // U+0080 to U+009F are the control characters of two bytes.
            0xc2 if bytes.get(at + 1).is_some_and(|next| *next < 0xa0) => return false,
            _ => {}
        }
    }
    is_name(&bytes[start..])
}

fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..") && name.len() <= MAX_NAME_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_paths_are_told_from_others() {
        for path in [
            "/", "/a", "/a/b", "/.a", "/...", "/a b", "/é", "/\u{a0}", "/😀/x",
        ] {
            assert!(is_canonical(path), "{path:?}");
        }
        for path in [
            "",
            "a",
            "//",
            "/a/",
            "/a//b",
            "/.",
            "/..",
            "/a/./b",
            "/a/../b",
            "/a\0",
            "/\n",
            "/\u{7f}",
            "/\u{80}",
            "/a\u{9f}b",
        ] {
            assert!(!is_canonical(path), "{path:?}");
        }
    }

    #[test]
    fn names_and_paths_have_a_longest_size() {
        let name = "n".repeat(MAX_NAME_BYTES);
        assert!(is_canonical(&format!("/{name}")));
        assert!(!is_canonical(&format!("/{name}n")));
        assert!(is_canonical(&format!("/{name}").repeat(16)));
        assert!(!is_canonical(&format!(
            "{}/n",
            format!("/{name}").repeat(16)
        )));
        assert!(!is_canonical(&format!("/{}", "é".repeat(128))));
    }
}
