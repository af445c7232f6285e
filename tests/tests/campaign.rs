//! A few random guests of every mode: the campaign's own harness, briefly.

use std::time::Duration;

use tests::campaign::{self, MODES, Tally};

#[test]
fn random_guests_of_every_mode() {
    let _watchdog = campaign::watchdog(Duration::from_secs(120));
    let (mut translated, mut traced) = (0, 0);
    for &(name, mode) in MODES {
        let mut tally = Tally::default();
        for seed in 0..25 {
            if let Err(error) = campaign::case(mode, seed, false, &mut tally) {
                panic!("{error}");
            }
        }
        assert_eq!(tally.cases, 25);
        let each = tally.instructions / tally.cases;
        assert!(each > 1000, "{name}: guests end after {each} instructions");
        assert!(tally.damaged > 0 && tally.damaged < 25, "{name}");
        assert!(tally.single > 0 && tally.single < 25, "{name}");
        translated += tally.translated;
        traced += tally.traced;
    }
    // Code of 16 bits is interpreted.
    assert!(translated > 25 && traced > 0, "{translated} {traced}");
}
