//! Tables of odd objects.
