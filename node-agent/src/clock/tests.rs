//! A host's clock that is stepped, and what is left of the time after a restart.

use std::cell::Cell;

use super::*;

/// A clock in a fresh state directory, and what the host's own clock says.
struct Scene {
    guard: tempfile::TempDir,
    state: Rc<StateDir>,
    wall: Rc<Cell<u64>>,
}

impl Scene {
    fn at(wall: u64) -> Self {
        let guard = tempfile::tempdir().unwrap();
        let state = Rc::new(StateDir::lock(&guard.path().join("state")).unwrap());
        Self { guard, state, wall: Rc::new(Cell::new(wall)) }
    }

    /// The clock of an agent that starts.
    fn clock(&self) -> Clock {
        let wall = Rc::clone(&self.wall);
        Clock { wall: Box::new(move || Duration::from_secs(wall.get())), ..Clock::new(Rc::clone(&self.state)) }
    }
}

#[test]
fn a_clock_stepped_back_goes_on_from_the_highest_time() {
    let scene = Scene::at(1_000_000);
    let mut clock = scene.clock();
    assert_eq!(clock.now(), Moment(1_000_000));
    scene.wall.set(1_000_100);
    assert_eq!(clock.now(), Moment(1_000_100));
    scene.wall.set(5);
    assert_eq!(clock.now(), Moment(1_000_100));
    // What passes by the monotonic clock counts meanwhile, however often it is asked.
    clock.highest.1 = clock.highest.1.checked_sub(Duration::from_millis(700)).unwrap();
    assert_eq!(clock.now(), Moment(1_000_100));
    clock.highest.1 = clock.highest.1.checked_sub(Duration::from_millis(700)).unwrap();
    assert_eq!(clock.now(), Moment(1_000_101));
    scene.wall.set(1_000_200);
    assert_eq!(clock.now(), Moment(1_000_200));
}

#[test]
fn what_has_ended_has_ended_after_a_restart_with_an_old_clock() {
    let scene = Scene::at(1_000_000);
    let mut clock = scene.clock();
    let now = clock.now();
    clock.expect([999_999, 1_000_010].map(Moment).into_iter(), now);
    scene.wall.set(1);
    assert_eq!(scene.clock().now(), Moment(1_000_000));

    scene.wall.set(1_000_010);
    assert!(clock.is_due());
    let now = clock.now();
    clock.expect([999_999, 1_000_010].map(Moment).into_iter(), now);
    assert!(!clock.is_due(), "nothing is left to end");
    scene.wall.set(1);
    assert_eq!(scene.clock().now(), Moment(1_000_010));
}

#[test]
fn the_time_is_kept_now_and_then_while_something_will_end_and_never_else() {
    let scene = Scene::at(1_000_000);
    let mut clock = scene.clock();
    clock.expect([].into_iter(), Moment(1_000_000));
    assert!(!clock.is_due());
    assert_eq!(scene.state.highest_time().unwrap(), Moment(0));
    clock.expect([Moment(2_000_000)].into_iter(), Moment(1_000_000));
    for (wall, kept) in [(1_000_000, 1_000_000), (1_000_059, 1_000_000), (1_000_060, 1_000_060)] {
        scene.wall.set(wall);
        assert!(!clock.is_due());
        assert_eq!(scene.state.highest_time().unwrap(), Moment(kept));
    }
}

#[test]
fn a_time_that_cannot_be_read_or_kept_stops_nothing() {
    let scene = Scene::at(1_000_000);
    let path = scene.guard.path().join("state/clock.json");
    std::fs::write(&path, "{").unwrap();
    let mut clock = scene.clock();
    assert_eq!(clock.now(), Moment(1_000_000));
    std::fs::create_dir(path.with_extension("json.new")).unwrap();
    clock.expect([999_999, 1_000_001].map(Moment).into_iter(), Moment(1_000_000));
    assert!(clock.unkept.last().is_some());
    scene.wall.set(1_000_001);
    assert!(clock.is_due());
    scene.wall.set(0);
    assert!(clock.is_due(), "in memory it does not go back all the same");
}
