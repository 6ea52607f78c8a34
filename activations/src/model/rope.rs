//! Rotary positions (arXiv 2104.09864) and the ways in which they are stretched to longer contexts.

/// How the pairs of a head turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the wavelengths.
    pub theta: f64,
    /// How many values of a head turn, its first ones; the rest stays.
    pub width: usize,
    /// How frequencies were changed for longer contexts.
    pub scaling: RopeScaling,
}

/// How frequencies were changed for longer contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by a factor (arXiv 2306.15595).
    Linear(f64),
    /// Each by a number of its own, of which there is one a pair: how GGUF spells what [`RopeScaling::Llama3`] comes to.
    Divided(Vec<f32>),
    /// Llama 3.1's: long wavelengths are divided, short ones stay, those between are interpolated.
    Llama3 {
        /// What long wavelengths are divided by.
        factor: f64,
        /// Wavelengths over `original / low` are long ...
        low: f64,
        /// ... and under `original / high` short.
        high: f64,
        /// The context that the model was first trained for, in tokens.
        original: f64,
    },
}

impl Rope {
    /// What makes it impossible in heads of width `d_head`, if anything does.
    pub(super) fn problem(&self, d_head: usize) -> Option<String> {
        if !self.width.is_multiple_of(2) || self.width == 0 || self.width > d_head {
            return Some(format!(
                "{} values of each head of {d_head} are to turn: rotary positions turn pairs",
                self.width
            ));
        }
        let numbers = match self.scaling {
            RopeScaling::None => vec![],
            RopeScaling::Linear(factor) => vec![("factor", factor)],
            RopeScaling::Divided(ref divisors) => {
                if divisors.len() != self.width / 2 {
                    return Some(format!(
                        "{} divisors of rotary frequencies, where {} pairs turn",
                        divisors.len(),
                        self.width / 2
                    ));
                }
                divisors
                    .iter()
                    .map(|&d| ("a divisor of rotary frequencies", d.into()))
                    .collect()
            }
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                if high <= low {
                    return Some(format!("high_freq_factor {high} is not above low_freq_factor {low}"));
                }
                vec![
                    ("factor", factor),
                    ("low_freq_factor", low),
                    ("original_max_position_embeddings", original),
                ]
            }
        };
        let mut numbers = numbers.into_iter().chain([("rope_theta", self.theta)]);
        let wrong = numbers.find(|(_, v)| !(v.is_finite() && *v > 0.0));
        wrong.map(|(name, value)| format!("{name} is {value}"))
    }

    /// Cosines and sines of every position's angles, `[seq, width / 2]` each. Frequencies are computed in f32 as
    /// transformers does, so that long contexts agree with it to rounding.
    pub(super) fn tables(&self, seq: usize) -> (Vec<f32>, Vec<f32>) {
        let frequencies: Vec<f32> = (0..self.width / 2)
            .map(|i| self.scaled(i, 1.0 / (self.theta as f32).powf((2 * i) as f32 / self.width as f32)))
            .collect();
        let angles = (0..seq).flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        angles.map(|angle| (angle.cos(), angle.sin())).unzip()
    }

    /// What becomes of the frequency of pair `pair`.
    fn scaled(&self, pair: usize, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::None => frequency,
            RopeScaling::Divided(ref divisors) => frequency / divisors[pair],
            RopeScaling::Linear(factor) => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let wavelength = 2.0 * std::f64::consts::PI / f64::from(frequency);
                let stretched = f64::from(frequency) / factor;
                // How far between long (0) and short (1) the wavelength is.
                let short = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                ((1.0 - short) * stretched + short * f64::from(frequency)) as f32
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama3(width: usize) -> Rope {
        Rope {
            theta: 500_000.0,
            width,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low: 1.0,
                high: 4.0,
                original: 8192.0,
            },
        }
    }

    #[test]
    fn llama3_leaves_short_wavelengths_and_divides_long_ones() {
        let rope = llama3(128);
        let short = 0.1f32; // a wavelength of 63 tokens
        let long = 1e-4; // of 63,000
        assert_eq!(rope.scaled(0, short), short);
        assert!((rope.scaled(0, long) - long / 8.0).abs() < 1e-10);
        let between = (2.0 * std::f64::consts::PI / 4096.0) as f32; // half the original context
        let expected = between * (1.0 / 3.0 + 2.0 / 3.0 / 8.0);
        assert!((rope.scaled(0, between) - expected).abs() < 1e-9);
    }

    #[test]
    fn an_odd_width_or_one_beyond_the_head_is_refused() {
        for width in [0, 3, 10] {
            assert!(llama3(width).problem(8).is_some(), "{width}");
        }
        assert_eq!(llama3(8).problem(8), None);
    }

    #[test]
    fn numbers_that_make_no_frequency_are_named() {
        let mut rope = llama3(8);
        rope.theta = f64::NAN;
        assert!(rope.problem(8).unwrap().contains("rope_theta is NaN"));
        rope.theta = 1e4;
        rope.scaling = RopeScaling::Linear(0.0);
        assert!(rope.problem(8).unwrap().contains("factor is 0"));
    }
}
