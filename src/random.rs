use crate::update::{ClientId, StateVector};

/// Numbers from a seed (SplitMix64, Steele et al. 2014): the same seed gives the same numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, not including, 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A client id that has written nothing in a document, of 32 bits as Yjs draws them.
    pub(crate) fn client_id(&mut self, state_vector: &StateVector) -> ClientId {
        loop {
            let id = ClientId::new(self.next() >> 32).expect("32 bits are less than 53");
            if id.get() != 0 && state_vector.clock(id) == 0 {
                return id;
            }
        }
    }
}
