//! The store from outside: what is written comes back, a killed writer continues to the same bytes, rows come mixed and
//! complete, and whatever is wrong is named.

#![allow(clippy::unwrap_used)] // test helpers are not #[test] functions, which clippy.toml already excuses

#[path = "store/compressed.rs"]
mod compressed;
#[path = "store/damage.rs"]
mod damage;
#[path = "store/fixture.rs"]
mod fixture;
#[path = "store/joined.rs"]
mod joined;
#[path = "store/mixing.rs"]
mod mixing;
#[path = "store/parts.rs"]
mod parts;
#[path = "store/resume.rs"]
mod resume;
#[path = "store/round_trip.rs"]
mod round_trip;
