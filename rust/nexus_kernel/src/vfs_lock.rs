//! The per-path shared/exclusive lock that one system call holds. Twin: `nexus.core.vfs_lock`,
//! which numbers the same invariants.
//!
//! Every path in use is a node of a tree, and each node counts what is held on it and beneath it. So
//! a lock costs one lookup and a walk up, however many others are held, and a path that was locked
//! lately costs no allocation.
//!
//! Invariants:
//!
//! 1. An exclusive hold on a path excludes every other hold on the path, above it and beneath it; a
//!    shared hold excludes exclusive ones there.
//! 2. Waiters are served in order: nobody is granted past an earlier waiter it conflicts with, but
//!    who holds one path of a set already. The earlier waiter may be waiting for just that one.
//! 3. Every wait ends, granted or not. A [`Hold`] or a [`Waiting`] that is dropped leaves nothing.
//! 4. Who takes several paths takes them in tree order: [`take_set`], [`take_pair`].
//!
//! Lock order: the mutex of the state, then that of a waiter's gate, which is a leaf. Nothing of
//! anybody else's is called under either, and nobody sleeps under the first.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering as Memory};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Nodes that nothing uses are kept for the next call until there are this many more than are used.
const IDLE_NODES: usize = 1024;

/// How a path is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With others that share it.
    Shared,
    /// Alone.
    Exclusive,
}

/// Grants holds on canonical paths. A cheap handle; shared by all threads, not reentrant.
#[derive(Clone)]
pub struct VfsLocks(Arc<Mutex<State>>);

/// A granted lock, which ends when it is released or dropped.
pub struct Hold {
    locks: VfsLocks,
    node: usize,
    mode: Mode,
    granted: AtomicBool,
}

/// A place in the queue. Dropped, it is given up, with what it was granted meanwhile.
pub struct Waiting {
    locks: VfsLocks,
    gate: Arc<Gate>,
    node: usize,
    mode: Mode,
    ended: bool,
}

/// What [`VfsLocks::enter`] found.
pub enum Entered {
    /// The lock was free.
    Held(Hold),
    /// It was not.
    Queued(Waiting),
}

impl VfsLocks {
    /// Locks of which none is held.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(State::new())))
    }

    /// A shared hold, where that needs no wait.
    pub fn try_read(&self, path: &str) -> Option<Hold> {
        self.try_enter(path, Mode::Shared)
    }

    /// An exclusive hold, where that needs no wait.
    pub fn try_write(&self, path: &str) -> Option<Hold> {
        self.try_enter(path, Mode::Exclusive)
    }

    /// A hold, or none within the timeout; `holding` tells of who has a path of the set already.
    pub fn acquire(
        &self,
        path: &str,
        mode: Mode,
        holding: bool,
        timeout: Duration,
    ) -> Option<Hold> {
        match self.enter(path, mode, holding) {
            Entered::Held(hold) => Some(hold),
            Entered::Queued(waiting) => {
                waiting.wait(timeout);
                waiting.finish()
            }
        }
    }

    /// Take the lock, or a place in the queue for it.
    pub fn enter(&self, path: &str, mode: Mode, holding: bool) -> Entered {
        let mut state = self.state();
        let node = state.node(path);
        if state.admits(node, mode, holding) {
            state.grant(node, mode);
            return Entered::Held(self.hold(node, mode));
        }
        let gate = Arc::new(Gate::default());
        state.nodes[node].uses += 1;
        state.waiters.push_back(Waiter {
            node,
            mode,
            holding,
            gate: Arc::clone(&gate),
        });
        let locks = self.clone();
        Entered::Queued(Waiting {
            locks,
            gate,
            node,
            mode,
            ended: false,
        })
    }

    /// Every held path, in no order, and how.
    pub fn held(&self) -> Vec<(String, Mode)> {
        let state = self.state();
        let held = |node: &Node| match (node.writer, node.readers) {
            (true, _) => Some((node.path.to_string(), Mode::Exclusive)),
            (false, 0) => None,
            (false, _) => Some((node.path.to_string(), Mode::Shared)),
        };
        let used = state.places.values();
        used.filter_map(|place| held(&state.nodes[*place]))
            .collect()
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.state().waiters.len()
    }

    fn try_enter(&self, path: &str, mode: Mode) -> Option<Hold> {
        let mut state = self.state();
        let node = state.node(path);
        if !state.admits(node, mode, false) {
            return None;
        }
        state.grant(node, mode);
        Some(self.hold(node, mode))
    }

    fn hold(&self, node: usize, mode: Mode) -> Hold {
        Hold {
            locks: self.clone(),
            node,
            mode,
            granted: AtomicBool::new(true),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for VfsLocks {
    fn default() -> Self {
        Self::new()
    }
}

impl Hold {
    /// Give the lock back and wake who can go on; again, it does nothing.
    pub fn release(&self) {
        if self.granted.swap(false, Memory::AcqRel) {
            let mut state = self.locks.state();
            state.take_back(self.node, self.mode);
            state.serve();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.release();
    }
}

impl Waiting {
    /// Sleep until granted, or until the timeout; return whether granted.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.gate.wait(timeout)
    }

    /// End the wait: the hold, if it was granted, else none, and the place in the queue is left.
    pub fn finish(mut self) -> Option<Hold> {
        self.end()
    }

    fn end(&mut self) -> Option<Hold> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let mut state = self.locks.state();
        if self.gate.is_open() {
            return Some(self.locks.hold(self.node, self.mode));
        }
        state.leave(&self.gate);
        None
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// Exclusive holds on all paths; one beneath another is covered by it. `acquire` is told whether
/// something is held already; where it fails nothing stays held.
pub fn take_set<E>(
    mut paths: Vec<&str>,
    mut acquire: impl FnMut(&str, Mode, bool) -> Result<Hold, E>,
) -> Result<Vec<Hold>, E> {
    paths.sort_unstable_by(|a, b| tree_order(a, b));
    let mut holds: Vec<Hold> = Vec::with_capacity(paths.len());
    let mut last = None;
    for path in paths {
        if last.is_none_or(|covering| !covers(covering, path)) {
            holds.push(acquire(path, Mode::Exclusive, !holds.is_empty())?);
            last = Some(path);
        }
    }
    Ok(holds)
}

/// A shared hold on the source and an exclusive one on the target, or that alone where it covers
/// both. Where `acquire` fails nothing stays held.
pub fn take_pair<E>(
    source: &str,
    target: &str,
    mut acquire: impl FnMut(&str, Mode, bool) -> Result<Hold, E>,
) -> Result<Vec<Hold>, E> {
    if covers(target, source) {
        return Ok(vec![acquire(target, Mode::Exclusive, false)?]);
    }
    let mut wanted = [(source, Mode::Shared), (target, Mode::Exclusive)];
    wanted.sort_unstable_by(|(a, _), (b, _)| tree_order(a, b));
    let [(first, mode), (second, other)] = wanted;
    let hold = acquire(first, mode, false)?;
    Ok(vec![hold, acquire(second, other, true)?])
}

/// The order in which a directory comes right before everything beneath it.
fn tree_order(a: &str, b: &str) -> Ordering {
    a.split('/').cmp(b.split('/'))
}

/// Whether a path is a directory or lies beneath it.
fn covers(directory: &str, path: &str) -> bool {
    let beneath = |rest: &str| rest.is_empty() || rest.starts_with('/') || directory == "/";
    path.strip_prefix(directory).is_some_and(beneath)
}

/// The directory that holds a path; the root has none.
fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 if path.len() == 1 => None,
        0 => Some("/"),
        end => Some(&path[..end]),
    }
}

/// Where one waiter sleeps. It is opened once, under the mutex of the state.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_one();
    }

    fn is_open(&self) -> bool {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, timeout: Duration) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_timeout_while(open, timeout, |open| !*open);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

struct Waiter {
    node: usize,
    mode: Mode,
    holding: bool,
    gate: Arc<Gate>,
}

struct Node {
    path: Arc<str>,
    parent: Option<usize>,
    /// Holds on it, waiters for it and nodes right beneath it; without any it may be dropped.
    uses: usize,
    readers: usize,
    writer: bool,
    /// Holds somewhere beneath, by mode.
    shared_below: usize,
    exclusive_below: usize,
}

struct State {
    nodes: Vec<Node>,
    vacant: Vec<usize>,
    places: HashMap<Arc<str>, usize>,
    /// How many nodes there may be before those not in use are dropped.
    limit: usize,
    waiters: VecDeque<Waiter>,
}

impl State {
    fn new() -> Self {
        Self {
            nodes: Vec::new(),
            vacant: Vec::new(),
            places: HashMap::new(),
            limit: IDLE_NODES,
            waiters: VecDeque::new(),
        }
    }

    /// The node of a path, made where there is none.
    fn node(&mut self, path: &str) -> usize {
        match self.places.get(path) {
            Some(place) => *place,
            None => self.make(path),
        }
    }

    fn make(&mut self, path: &str) -> usize {
        if self.places.len() >= self.limit {
            self.drop_idle();
        }
        let mut missing = vec![path];
        let mut above = None;
        while let Some(directory) = parent(missing[missing.len() - 1]) {
            above = self.places.get(directory).copied();
            if above.is_some() {
                break;
            }
            missing.push(directory);
        }
        let mut place = above;
        for path in missing.into_iter().rev() {
            place = Some(self.add(path, place));
        }
        place.expect("a path is at least missing itself")
    }

    fn add(&mut self, path: &str, parent: Option<usize>) -> usize {
        let path: Arc<str> = path.into();
        let node = Node {
            path: Arc::clone(&path),
            parent,
            uses: 0,
            readers: 0,
            writer: false,
            shared_below: 0,
            exclusive_below: 0,
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.nodes[place] = node;
                place
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        if let Some(above) = parent {
            self.nodes[above].uses += 1;
        }
        self.places.insert(path, place);
        place
    }

    /// Drop every node that is not in use; its turn comes after as many new ones as are left.
    fn drop_idle(&mut self) {
        let all: Vec<usize> = self.places.values().copied().collect();
        for place in all {
            // One that was dropped on the way up from another is idle too, but has no entry.
            let mut next = Some(place);
            while let Some(place) = next.filter(|place| self.nodes[*place].uses == 0) {
                next = match self.places.remove(&self.nodes[place].path) {
                    Some(_) => self.nodes[place].parent,
                    None => break,
                };
                self.vacant.push(place);
                if let Some(above) = next {
                    self.nodes[above].uses -= 1;
                }
            }
        }
        self.limit = 2 * self.places.len() + IDLE_NODES;
    }

    fn admits(&self, node: usize, mode: Mode, holding: bool) -> bool {
        let overtakes = |waiter: &Waiter| self.conflicts(waiter, node, mode);
        self.is_free(node, mode) && (holding || !self.waiters.iter().any(overtakes))
    }

    fn is_free(&self, node: usize, mode: Mode) -> bool {
        let at = &self.nodes[node];
        let shared = mode == Mode::Shared;
        if at.writer || at.exclusive_below > 0 {
            return false;
        }
        if !shared && (at.readers > 0 || at.shared_below > 0) {
            return false;
        }
        let mut above = at.parent;
        while let Some(place) = above {
            let directory = &self.nodes[place];
            if directory.writer || !shared && directory.readers > 0 {
                return false;
            }
            above = directory.parent;
        }
        true
    }

    fn conflicts(&self, waiter: &Waiter, node: usize, mode: Mode) -> bool {
        let both_shared = mode == Mode::Shared && waiter.mode == Mode::Shared;
        let (path, other) = (&self.nodes[node].path, &self.nodes[waiter.node].path);
        !both_shared && (covers(path, other) || covers(other, path))
    }

    fn grant(&mut self, node: usize, mode: Mode) {
        let at = &mut self.nodes[node];
        at.uses += 1;
        match mode {
            Mode::Shared => at.readers += 1,
            Mode::Exclusive => at.writer = true,
        }
        self.for_each_above(node, |directory| *directory.below(mode) += 1);
    }

    fn take_back(&mut self, node: usize, mode: Mode) {
        let at = &mut self.nodes[node];
        at.uses -= 1;
        match mode {
            Mode::Shared => at.readers -= 1,
            Mode::Exclusive => at.writer = false,
        }
        self.for_each_above(node, |directory| *directory.below(mode) -= 1);
    }

    fn for_each_above(&mut self, node: usize, change: impl Fn(&mut Node)) {
        let mut above = self.nodes[node].parent;
        while let Some(place) = above {
            let directory = &mut self.nodes[place];
            change(directory);
            above = directory.parent;
        }
    }

    /// Grant every waiter, in order, that conflicts with no hold and no earlier waiter.
    fn serve(&mut self) {
        if self.waiters.is_empty() {
            return;
        }
        let waiters = std::mem::take(&mut self.waiters);
        for waiter in waiters {
            if self.admits(waiter.node, waiter.mode, waiter.holding) {
                self.grant(waiter.node, waiter.mode);
                self.nodes[waiter.node].uses -= 1;
                waiter.gate.open();
            } else {
                self.waiters.push_back(waiter);
            }
        }
    }

    /// Take a waiter that gave up out of the queue, and let those go on who stood behind it.
    fn leave(&mut self, gate: &Arc<Gate>) {
        let place = self.waiters.iter().position(|w| Arc::ptr_eq(&w.gate, gate));
        if let Some(waiter) = place.and_then(|place| self.waiters.remove(place)) {
            self.nodes[waiter.node].uses -= 1;
            self.serve();
        }
    }
}

impl Node {
    fn below(&mut self, mode: Mode) -> &mut usize {
        match mode {
            Mode::Shared => &mut self.shared_below,
            Mode::Exclusive => &mut self.exclusive_below,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    const PATIENT: Duration = Duration::from_secs(60);
    const PATHS: [&str; 9] = [
        "/", "/z", "/z/a", "/z/a/b", "/z/a/b/c", "/z/a-", "/z/a-/m", "/z/b", "/y",
    ];

    fn related(one: &str, other: &str) -> bool {
        let inside = |path: &str, directory: &str| {
            directory == "/" || format!("{path}/").starts_with(&format!("{directory}/"))
        };
        inside(one, other) || inside(other, one)
    }

    fn conflict(one: (&str, Mode), other: (&str, Mode)) -> bool {
        related(one.0, other.0) && (one.1 == Mode::Exclusive || other.1 == Mode::Exclusive)
    }

    #[test]
    fn invariant_1_an_exclusive_hold_excludes_all_on_its_path_above_and_beneath() {
        for path in PATHS {
            for other in PATHS {
                for (mode, wanted) in [
                    (Mode::Exclusive, Mode::Shared),
                    (Mode::Shared, Mode::Exclusive),
                    (Mode::Exclusive, Mode::Exclusive),
                    (Mode::Shared, Mode::Shared),
                ] {
                    let locks = VfsLocks::new();
                    let hold = locks.try_enter(path, mode).expect("a free lock");
                    let free = !conflict((path, mode), (other, wanted));
                    assert_eq!(
                        locks.try_enter(other, wanted).is_some(),
                        free,
                        "{path} {other}"
                    );
                    drop(hold);
                    assert!(locks.try_write(other).is_some());
                }
            }
        }
    }

    #[test]
    fn invariant_2_nobody_is_granted_past_a_waiter_it_conflicts_with() {
        let locks = VfsLocks::new();
        let reader = locks.try_read("/z/a").expect("a free lock");
        let Entered::Queued(writer) = locks.enter("/z/a", Mode::Exclusive, false) else {
            panic!("an exclusive hold beside a shared one");
        };
        assert!(locks.try_read("/z/a/b").is_none());
        assert!(locks.try_read("/z/b").is_some());
        let Entered::Held(next) = locks.enter("/z/a/b", Mode::Shared, true) else {
            panic!("who holds a path already is kept back by who may wait for that one");
        };
        drop(next);
        drop(reader);
        assert!(writer.finish().is_some());
    }

    #[test]
    fn invariant_3_a_waiter_that_leaves_lets_those_behind_go_on() {
        let locks = VfsLocks::new();
        let reader = locks.try_read("/z/a").expect("a free lock");
        let Entered::Queued(writer) = locks.enter("/z/a", Mode::Exclusive, false) else {
            panic!("an exclusive hold beside a shared one");
        };
        let Entered::Queued(behind) = locks.enter("/z/a", Mode::Shared, false) else {
            panic!("a shared hold past a waiter");
        };
        assert!(!behind.wait(Duration::ZERO));
        drop(writer);
        assert!(behind.wait(Duration::ZERO));
        drop(behind);
        drop(reader);
        assert!(locks.held().is_empty());
        assert_eq!(locks.waiting(), 0);
    }

    #[test]
    fn invariant_3_a_hold_is_released_once() {
        let locks = VfsLocks::new();
        let first = locks.try_read("/z").expect("a free lock");
        let second = locks.try_read("/z").expect("a shared lock");
        first.release();
        first.release();
        drop(first);
        assert!(locks.try_write("/z").is_none());
        drop(second);
        assert!(locks.try_write("/z").is_some());
    }

    #[test]
    fn invariant_4_crossing_sets_taken_together_never_deadlock() {
        let locks = VfsLocks::new();
        let sets = [
            ["/z/a", "/z/a-/m"],
            ["/z/a-", "/z/a/k"],
            ["/z/b", "/z/a"],
            ["/z", "/z/a"],
        ];
        thread::scope(|scope| {
            for set in sets {
                let locks = &locks;
                scope.spawn(move || {
                    for _ in 0..500 {
                        let taken = take_set(set.to_vec(), |path, mode, holding| {
                            locks.acquire(path, mode, holding, PATIENT).ok_or(())
                        });
                        assert!(taken.is_ok());
                    }
                });
            }
        });
        assert!(locks.held().is_empty());
    }

    #[test]
    fn a_pair_of_which_the_target_covers_the_source_is_one_hold() {
        let locks = VfsLocks::new();
        let take = |source, target| {
            take_pair(source, target, |path, mode, _| {
                locks.try_enter(path, mode).ok_or(())
            })
        };
        let holds = take("/z/a/b", "/z/a").expect("free locks");
        assert_eq!(locks.held(), [("/z/a".to_owned(), Mode::Exclusive)]);
        drop(holds);
        let holds = take("/z/b", "/z/a").expect("free locks");
        let modes: Vec<Mode> = holds.iter().map(|hold| hold.mode).collect();
        assert_eq!(modes, [Mode::Exclusive, Mode::Shared]);
    }

    #[test]
    fn nodes_that_nothing_uses_are_dropped_and_those_in_use_are_kept() {
        let locks = VfsLocks::new();
        let kept = locks.try_write("/z/kept/f").expect("a free lock");
        for number in 0..20 * IDLE_NODES {
            assert!(locks.try_read(&format!("/z/{number}/f/g")).is_some());
        }
        assert!(locks.state().places.len() <= 2 * IDLE_NODES);
        assert!(locks.state().nodes.len() <= 2 * IDLE_NODES);
        assert!(locks.try_read("/z/kept").is_none());
        assert!(locks.try_read("/z/kept/f/g").is_none());
        drop(kept);
        assert!(locks.try_write("/z").is_some());
    }

    #[test]
    fn threads_exclude_one_another_and_lose_no_wake_up() {
        let locks = VfsLocks::new();
        let inside: Vec<AtomicUsize> = PATHS.iter().map(|_| AtomicUsize::new(0)).collect();
        thread::scope(|scope| {
            for seed in 0..8 {
                let (locks, inside) = (&locks, &inside);
                scope.spawn(move || {
                    for step in 0..2000 {
                        let at = (seed * 7 + step * 3) % PATHS.len();
                        let mode = match (seed + step) % 3 {
                            0 => Mode::Exclusive,
                            _ => Mode::Shared,
                        };
                        let hold = locks.acquire(PATHS[at], mode, false, PATIENT);
                        let hold = hold.expect("a lock in time");
                        // The low half counts who shares, the high one who holds alone.
                        let one = if mode == Mode::Shared { 1 } else { 1 << 32 };
                        inside[at].fetch_add(one, Memory::SeqCst);
                        for (path, count) in PATHS.iter().zip(inside) {
                            if related(path, PATHS[at]) {
                                let seen = count.load(Memory::SeqCst);
                                let own = if *path == PATHS[at] { one } else { 0 };
                                let mine = seen - own;
                                assert_eq!(mine >> 32, 0);
                                assert!(mode == Mode::Shared || mine == 0);
                            }
                        }
                        inside[at].fetch_sub(one, Memory::SeqCst);
                        drop(hold);
                    }
                });
            }
        });
        assert!(locks.held().is_empty());
        assert_eq!(locks.waiting(), 0);
    }

    /// What the naive model has of one call.
    struct Call {
        path: &'static str,
        mode: Mode,
        holding: bool,
        held: bool,
        hold: Option<Hold>,
        waiting: Option<Waiting>,
    }

    /// Grant in the model what it can, in order: a call looks at the holds and the earlier waiters.
    fn settle(calls: &mut [Call]) {
        for at in 0..calls.len() {
            if !calls[at].held {
                let call = &calls[at];
                let clash =
                    |other: &Call| conflict((other.path, other.mode), (call.path, call.mode));
                let free = !calls.iter().any(|other| other.held && clash(other));
                let turn = call.holding || !calls[..at].iter().any(|c| !c.held && clash(c));
                calls[at].held = free && turn;
            }
        }
    }

    #[test]
    fn grants_agree_with_a_list_of_calls_in_10000_histories() {
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        let mut draw = |below: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 33) as usize % below
        };
        for _ in 0..10_000 {
            let locks = VfsLocks::new();
            let mut calls: Vec<Call> = Vec::new();
            for _ in 0..draw(24) {
                if !calls.is_empty() && draw(5) < 2 {
                    let call = calls.remove(draw(calls.len()));
                    let ended = call.waiting.map(Waiting::finish);
                    drop((call.hold, ended));
                    settle(&mut calls);
                } else {
                    let mode = [Mode::Shared, Mode::Exclusive][draw(2)];
                    calls.push(entered(
                        &locks,
                        PATHS[draw(PATHS.len())],
                        mode,
                        draw(4) == 0,
                    ));
                    settle(&mut calls);
                }
                agree(&locks, &calls);
            }
            drop(calls);
            assert!(locks.held().is_empty());
            assert!(locks.try_write("/").is_some());
        }
    }

    fn entered(locks: &VfsLocks, path: &'static str, mode: Mode, holding: bool) -> Call {
        let (hold, waiting) = match locks.enter(path, mode, holding) {
            Entered::Held(hold) => (Some(hold), None),
            Entered::Queued(waiting) => (None, Some(waiting)),
        };
        Call {
            path,
            mode,
            holding,
            held: false,
            hold,
            waiting,
        }
    }

    fn agree(locks: &VfsLocks, calls: &[Call]) {
        for call in calls {
            let granted = call.waiting.as_ref().is_none_or(|w| w.wait(Duration::ZERO));
            assert_eq!(granted, call.held, "{} {:?}", call.path, call.mode);
        }
        let mut held: Vec<(String, Mode)> = calls
            .iter()
            .filter(|call| call.held)
            .map(|call| (call.path.to_owned(), call.mode))
            .collect();
        held.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        held.dedup();
        let mut found = locks.held();
        found.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found, held);
        let waiting = calls.iter().filter(|call| !call.held).count();
        assert_eq!(locks.waiting(), waiting);
    }
}
