//! How the broker gives packet identifiers away. Pure; it knows nothing of messages.

/// Steps forward, past identifiers known to be free, after which the broker is believed to go round all.
pub const ASCENDING_STEPS: u32 = 100;

/// Whether the broker goes round all identifiers (Mosquitto and most do) or reuses freed ones early.
///
/// Believed once it went forward [`ASCENDING_STEPS`] times although an identifier behind was known to be free,
/// and until it first goes back. Gaps are allowed: Mosquitto counts messages it then drops.
#[derive(Debug, Default)]
pub struct IdPolicy {
    /// Where the present run forward began, and the last identifier of it.
    run: Option<(u16, u16)>,
    free_behind: bool,
    steps: u32,
}

impl IdPolicy {
    /// See the type.
    pub fn goes_round(&self) -> bool {
        self.steps >= ASCENDING_STEPS
    }

    /// A message came under this identifier, not again.
    pub fn arrived(&mut self, id: u16) {
        match self.run {
            Some((first, last)) if (1..=32_767).contains(&forward(last, id)) => {
                self.run = Some((first, id));
                self.steps = self.steps.saturating_add(u32::from(self.free_behind));
            }
            _ => *self = IdPolicy { run: Some((id, id)), free_behind: false, steps: 0 },
        }
    }

    /// The broker may use this identifier for another message.
    pub fn freed(&mut self, id: u16) {
        if let Some((first, last)) = self.run {
            self.free_behind |= forward(first, id) <= forward(first, last);
        }
    }
}

/// Steps from one identifier to another, upwards, 65,535 being followed by 1.
fn forward(from: u16, to: u16) -> u32 {
    (u32::from(to) + 65_535 - u32::from(from)) % 65_535
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(steps: impl IntoIterator<Item = u16>, freed: &[u16]) -> bool {
        let mut policy = IdPolicy::default();
        for id in steps {
            policy.arrived(id);
            freed.iter().for_each(|&id| policy.freed(id));
        }
        policy.goes_round()
    }

    #[test]
    fn going_round_is_believed_after_passing_over_free_ids_and_not_before() {
        assert!(policy(1..=102, &[1]));
        assert!(policy((65_480..=65_535).chain(1..=60), &[65_480]), "the wrap is a step forward");
        assert!(policy((1..=102).map(|step| step * 3), &[3]), "gaps are allowed");
        assert!(!policy(1..=1000, &[]), "a burst proves nothing: no id was free");
        assert!(!policy(1..=60, &[1]), "too short");
        assert!(!policy((1..=200).chain([1]), &[1]), "it went back");
        assert!(!policy(std::iter::repeat_n(1, 200), &[1]), "always the same");
    }
}
