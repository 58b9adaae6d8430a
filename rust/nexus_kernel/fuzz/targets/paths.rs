//! `paths::is_canonical` against its definition, character by character.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nexus_kernel::paths::is_canonical;

fuzz_target!(|path: &str| {
    assert_eq!(is_canonical(path), by_definition(path), "{path:?}");
});

fn by_definition(path: &str) -> bool {
    let Some(relative) = path.strip_prefix('/') else {
        return false;
    };
    let is_name = |name: &str| !["", ".", ".."].contains(&name) && name.len() <= 255;
    path.len() <= 4096
        && !path.chars().any(char::is_control)
        && (relative.is_empty() || relative.split('/').all(is_name))
}
