use proptest::prelude::*;

use super::{LoadError, load, save};
use crate::device::Window;
use crate::regs::{FEATURES, NO_VECTOR, Registers};
use crate::testing::queue;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn regs() -> Registers {
    let mut regs = Registers::new(256, MAC);
    regs.driver_features = FEATURES;
    regs.feature_select = [1, 2];
    regs.config_vector = 0;
    (regs.status, regs.generation, regs.isr, regs.queue_select) = (15, 4, 3, 9);
    regs.queues = [queue(128), queue(256)];
    (regs.queues[1].next_avail, regs.queues[1].next_used) = (0xfff0, 0xfff0);
    regs.queues[0].vector = NO_VECTOR;
    regs
}

fn state(regs: &Registers, held: &[Vec<u8>]) -> Vec<u8> {
    let window = Window { bar: 1, offset: 0x2000, length: 4 };
    save(regs, MAC, &window, held.iter())
}

#[test]
fn what_is_saved_is_loaded() {
    let held = vec![vec![1; 14], vec![2; 0x1_0000]];
    let bytes = state(&regs(), &held);
    let loaded = load(&bytes, 256, MAC).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((loaded.regs, loaded.held), (regs(), held));
    assert_eq!(loaded.window, Window { bar: 1, offset: 0x2000, length: 4 });
}

fn error(bytes: &[u8]) -> String {
    load(bytes, 256, MAC).err().map(|error| error.to_string()).unwrap_or_default()
}

#[test]
fn what_cannot_be_is_refused() {
    let good = state(&regs(), &[vec![1; 14]]);
    for len in 0..good.len() {
        assert_eq!(load(&good[..len], 256, MAC).err(), Some(LoadError::Short(len)));
    }
    assert!(error(&[&good[..], &[0]].concat()).contains("behind its end"));
    assert!(load(&good, 128, MAC).is_err() && load(&good, 256, [4; 6]).is_err());
    let with = |change: &dyn Fn(&mut Registers)| {
        let mut regs = regs();
        change(&mut regs);
        error(&state(&regs, &[]))
    };
    assert!(with(&|regs| regs.driver_features |= 1).contains("features"));
    assert!(with(&|regs| regs.status = 4).contains("status"));
    assert!(with(&|regs| regs.config_vector = 3).contains("vector"));
    assert!(with(&|regs| regs.isr = 4).contains("interrupt status"));
    assert!(with(&|regs| regs.queues[0].size = 3).contains("queue"));
    assert!(with(&|regs| regs.queues[0].desc = 8).contains("queue"));
    assert!(with(&|regs| regs.queues[1].next_used = 1).contains("used index"));
    assert!(error(&state(&regs(), &[vec![0; 13]])).contains("frame length"));
    assert!(error(&state(&regs(), &vec![vec![0; 14]; 257])).contains("frames"));
    assert!(error(&state(&regs(), &vec![vec![0; 65536]; 18])).contains("bytes of frames"));
}

proptest! {
    #[test]
    fn any_change_is_refused_or_is_a_state_of_its_own(at in 0_usize..180, byte in any::<u8>()) {
        let mut bytes = state(&regs(), &[vec![1; 20], vec![2; 14]]);
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(loaded) = load(&bytes, 256, MAC) {
            let again = save(&loaded.regs, MAC, &loaded.window, loaded.held.iter());
            prop_assert_eq!(again, bytes);
        }
    }
}
