//! Modules import downwards only: the `use crate::` lines against the allowed directions.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module with the modules that it may use. `tree` and `kv` know no probabilities, `verify` knows
/// no memory, and nothing but `bindings` knows Python.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("fpmode", &[]),
    ("mutants", &[]),
    ("num", &[]),
    ("fraction", &["num"]),
    ("rng", &["mutants"]),
    ("tree", &["error"]),
    ("kv", &["error", "mutants", "tree"]),
    ("ngram", &["error", "tree"]),
    ("choice", &["error", "mutants", "num", "rng"]),
    ("exact", &["choice", "error", "num", "rng"]),
    ("simd", &["choice", "rng"]),
    ("rows", &["error", "mutants", "simd"]),
    ("history", &["error", "mutants", "num"]),
    ("dist", &["error", "history", "mutants", "num", "rows", "simd", "tree"]),
    ("verify", &["choice", "dist", "error", "exact", "mutants", "num", "rows", "simd", "tree"]),
    ("shape", &["choice", "dist", "error", "num", "rows", "simd", "tree", "verify"]),
    ("pool", &["error", "fpmode"]),
    ("batch", &["dist", "error", "mutants", "pool", "rows", "tree", "verify"]),
    (
        "certify",
        &[
            "batch", "choice", "dist", "error", "exact", "fraction", "history", "kv", "mutants",
            "num", "pool", "rng", "rows", "shape", "simd", "tree", "verify",
        ],
    ),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// The top-level modules named after `crate::` in a text, test modules left out.
fn used(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let mut modules = Vec::new();
    for after in text.split("crate::").skip(1) {
        let names = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default(),
            None => {
                after.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default()
            }
        };
        for name in names.split(',') {
            let name = name.trim().split("::").next().unwrap_or_default();
            modules.push(name.to_owned());
        }
    }
    modules
}

#[test]
fn imports_point_downwards() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut checked = 0;
    for file in files {
        let inside = file.strip_prefix(&root).unwrap().with_extension("");
        let module = inside.components().next().unwrap().as_os_str().to_str().unwrap();
        if ["lib", "bindings"].contains(&module) || inside.ends_with("tests") {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("src/{module}: name the modules that it may use here"));
        let text = fs::read_to_string(&file).unwrap();
        for target in used(&text) {
            assert!(
                target == module || allowed.contains(&target.as_str()),
                "{}: uses crate::{target}, which is not below {module}",
                file.display()
            );
        }
        assert!(!text.contains("pyo3"), "{}: only bindings knows Python", file.display());
        checked += 1;
    }
    assert!(checked > 20, "only {checked} files were found");
}
