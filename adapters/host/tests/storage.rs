//! A store that answers at once.

mod common;

use common::World;
use yrs_websocket_host::Options;

#[test]
fn thousands_of_writes_that_follow_from_each_other_take_no_more_of_the_stack_than_one() {
    let mut world = World::new(Options::default());
    let (writer, pipe) = world.join("notes");
    // Each is a struct behind a gap, which is written by itself, when the one before it is stored.
    let update = |n: u16| {
        let clock = 2 * n + 1;
        [0, 2, 8, 1, 1, 7, clock as u8 | 0x80, (clock >> 7) as u8, 0, 1, 0]
    };
    let frame = (0..8_000).flat_map(update).collect::<Vec<_>>();
    world.send(writer, &frame);
    assert_eq!(world.host.counters().appends, 8_000);
    assert_eq!(world.host.unstored_bytes(), 0);
    assert_eq!(pipe.frames().len(), 8_000, "the echo of each");
}
