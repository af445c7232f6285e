//! Guests of our own, assembled by the build.
