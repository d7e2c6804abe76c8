//! Containers and NRI plugins: what plugins see of a container, and how what they want becomes its spec or its limits.

mod apply;
mod limits;
mod parts;
#[cfg(test)]
mod tests;
mod view;

pub use apply::{Adjusted, Ground, apply};
pub use limits::{take, wanted};
pub use view::{image_of, message, read};
