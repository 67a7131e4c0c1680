//! The processor's floating-point mode, as Rust assumes it: rounded to nearest, subnormals kept.
//!
//! Callers may have changed it for their thread, and threads inherit it: `torch.set_flush_denormal(True)`
//! makes subnormals 0, so that a token of a tiny probability would be drafted in one thread and not exist
//! in another. Rust code is compiled for the standard mode and must not run in any other. So the bindings
//! enter it at their gate and leave it again, and the pool's threads live in it.

#![allow(unsafe_code)]

/// The standard mode for the current thread; the mode before comes back when this is dropped.
#[derive(Debug)]
pub struct Standard {
    before: Mode,
}

impl Standard {
    /// Enters the standard mode.
    #[must_use = "the mode is left when this is dropped"]
    pub fn enter() -> Self {
        let before = read();
        if before != STANDARD {
            write(STANDARD);
        }
        Self { before }
    }
}

impl Drop for Standard {
    fn drop(&mut self) {
        if self.before != STANDARD {
            write(self.before);
        }
    }
}

/// Enters the standard mode for the rest of the thread's life.
pub fn settle_thread() {
    write(STANDARD);
}

#[cfg(target_arch = "x86_64")]
mod machine {
    use std::arch::asm;

    pub(super) type Mode = u32;

    /// All exceptions masked, rounded to nearest, neither flush-to-zero nor denormals-are-zero.
    pub(super) const STANDARD: Mode = 0x1f80;

    /// The sticky flags of exceptions that have occurred say nothing about the mode.
    const FLAGS: Mode = 0x3f;

    pub(super) fn read() -> Mode {
        let mut mode: Mode = 0;
        // SAFETY: stores the control register into a local of its size.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut mode, options(nostack, preserves_flags)) };
        mode & !FLAGS
    }

    pub(super) fn write(mode: Mode) {
        // SAFETY: loads a value that was read from the register, or the standard one: no reserved bits.
        unsafe {
            asm!("ldmxcsr [{}]", in(reg) &raw const mode, options(nostack, readonly, preserves_flags));
        };
    }
}

#[cfg(target_arch = "aarch64")]
mod machine {
    use std::arch::asm;

    pub(super) type Mode = u64;

    pub(super) const STANDARD: Mode = 0;

    pub(super) fn read() -> Mode {
        let mode: Mode;
        // SAFETY: reads the control register.
        unsafe { asm!("mrs {}, fpcr", out(reg) mode, options(nomem, nostack, preserves_flags)) };
        mode
    }

    pub(super) fn write(mode: Mode) {
        // SAFETY: writes a value that was read from the register, or the standard one.
        unsafe { asm!("msr fpcr, {}", in(reg) mode, options(nomem, nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod machine {
    pub(super) type Mode = ();

    pub(super) const STANDARD: Mode = ();

    pub(super) fn read() -> Mode {}

    pub(super) fn write(_mode: Mode) {}
}

use machine::{Mode, STANDARD, read, write};

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use std::hint::black_box;

    /// Flush-to-zero and denormals-are-zero.
    const FLUSHING: u32 = 0x8040;

    fn half_of_the_least() -> f32 {
        black_box(f32::MIN_POSITIVE) * black_box(0.5)
    }

    #[test]
    fn subnormals_are_kept_inside_and_the_mode_comes_back() {
        let outside = read();
        write(STANDARD | FLUSHING);
        let flushed = half_of_the_least();
        let inside = {
            let _standard = Standard::enter();
            half_of_the_least()
        };
        let after = read();
        write(outside);
        assert_eq!(flushed.to_bits(), 0);
        assert_eq!(inside.to_bits(), f32::MIN_POSITIVE.to_bits() >> 1);
        assert_eq!(after, STANDARD | FLUSHING);
    }
}
