//! What the sources promise as a whole: rooms import downwards only, and whatever Python can call goes
//! through the one gate.

#![allow(clippy::unwrap_used)] // A failure here is a failed test.

use std::fs;
use std::path::{Path, PathBuf};

/// Each room of `src/` with the rooms that it may use, lower ones first. `tree` and `kv` know no
/// probabilities, `verify` knows no memory, and nothing but `python` knows Python.
const ALLOWED: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("mutants", &[]),
    ("number", &[]),
    ("tree", &["error"]),
    ("kv", &["error", "mutants", "tree"]),
    ("ngram", &["error", "tree"]),
    ("chance", &["error", "mutants", "number"]),
    ("rows", &["chance", "error", "mutants", "number"]),
    ("shaping", &["error", "mutants", "number", "rows", "tree"]),
    ("verify", &["chance", "error", "mutants", "number", "rows", "shaping", "tree"]),
    ("growers", &["chance", "error", "number", "rows", "shaping", "tree", "verify"]),
    ("batch", &["error", "mutants", "rows", "shaping", "tree", "verify"]),
    ("attention", &["batch", "error", "rows"]),
    ("head", &["attention", "batch", "error", "rows"]),
    (
        "proof",
        &[
            "batch", "chance", "error", "growers", "kv", "mutants", "number", "rows", "shaping",
            "tree", "verify",
        ],
    ),
];

#[test]
fn the_order_of_the_rooms_has_no_circle() {
    for (place, (room, below)) in ALLOWED.iter().enumerate() {
        for used in *below {
            let known = ALLOWED[..place].iter().any(|(name, _)| name == used);
            assert!(known, "{room} uses {used}, which does not stand above it in the list");
        }
    }
}

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
        if ["lib", "python"].contains(&module) || inside.ends_with("tests") {
            continue;
        }
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("src/{module}: name the rooms that it may use here"));
        let text = fs::read_to_string(&file).unwrap();
        for target in used(&text) {
            assert!(
                target == module || allowed.contains(&target.as_str()),
                "{}: uses crate::{target}, which is not below {module}",
                file.display()
            );
        }
        assert!(!text.contains("pyo3"), "{}: only src/python knows Python", file.display());
        checked += 1;
    }
    assert!(checked > 20, "only {checked} files were found");
}

/// A function that Python can call.
struct Callable {
    name: String,
    arguments: String,
    body: String,
}

/// The functions of a file that carry `#[pyfunction]` or stand in a `#[pymethods]` block; the sources are
/// formatted, so a body ends where a line closes it at the function's own indentation.
fn callables(text: &str) -> Vec<Callable> {
    let mut found = Vec::new();
    let mut wanted: Option<&str> = None;
    let lines: Vec<&str> = text.lines().collect();
    for (number, line) in lines.iter().enumerate() {
        match line.trim_end() {
            "#[pyfunction]" => wanted = Some(""),
            "#[pymethods]" => wanted = Some("    "),
            "}" => wanted = None,
            _ => {}
        }
        let Some(indent) = wanted else { continue };
        let Some(rest) = line.strip_prefix(indent).and_then(|rest| rest.strip_prefix("fn ")) else {
            continue;
        };
        let name = rest.split(['(', '<']).next().unwrap().to_owned();
        let end = format!("{indent}}}");
        let length = lines[number..].iter().position(|line| *line == end).unwrap();
        let all = lines[number..number + length].join("\n");
        let (signature, body) = all.split_once(" {\n").unwrap();
        let arguments = signature.rsplit_once("->").map_or(signature, |(before, _)| before);
        found.push(Callable {
            name,
            arguments: arguments.split_once('(').unwrap().1.to_owned(),
            body: body.trim().to_owned(),
        });
    }
    found
}

/// Whether a body is one call of a gate, with nothing before it and at most a wrapper class behind it.
fn is_gated(body: &str) -> bool {
    if !["hold(|| ", "enter(py, || "].iter().any(|gate| body.starts_with(gate)) {
        return false;
    }
    let mut depth = 0;
    for (at, sign) in body.char_indices() {
        depth += match sign {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 && sign == ')' {
            let rest = body[at + 1..].trim();
            let word = rest.strip_prefix(".map(").and_then(|rest| rest.strip_suffix(')'));
            return rest.is_empty()
                || word.is_some_and(|word| word.chars().all(char::is_alphabetic));
        }
    }
    false
}

#[test]
fn whatever_python_calls_goes_through_the_gate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/python");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut checked = 0;
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let place = file.display();
        for Callable { name, arguments, body } in callables(&text) {
            assert!(is_gated(&body), "{place}: {name} works outside of hold() and enter()");
            // pyo3 converts these before the gate: a list by reserving what `__len__` claims, a number
            // with an error that does not say which argument it was.
            let taken = ["Vec<", "String", "i64", "u64", "i32", "u32", "usize", "f32"];
            for kind in taken {
                assert!(!arguments.contains(kind), "{place}: {name} takes {kind} before the gate");
            }
            checked += 1;
        }
        for class in text.lines().filter(|line| line.starts_with("#[pyclass")) {
            assert!(class.contains("frozen"), "{place}: {class}: threads would find it borrowed");
        }
        assert!(!text.contains("derive(FromPyObject"), "{place}: converted before the gate");
    }
    assert!(checked > 120, "only {checked} callables were found");
}

#[test]
fn work_outside_the_gate_would_be_found() {
    let text = "#[pyfunction]\nfn f(n: Vec<i64>) -> PyResult<usize> {\n    let n = 1;\n    hold(|| \
                Ok(n))\n}\n\n#[pymethods]\nimpl A {\n    fn g(&self) -> PyResult<A> {\n        \
                enter(py, || work()).map(A)\n    }\n\n    fn h(&self) -> PyResult<usize> {\n        \
                hold(|| Ok(1)).map(|n| n / 0)\n    }\n}\n";
    let found = callables(text);
    let seen: Vec<_> = found.iter().map(|f| (&f.name[..], is_gated(&f.body))).collect();
    assert_eq!(seen, [("f", false), ("g", true), ("h", false)]);
    assert!(found[0].arguments.contains("Vec<") && !found[1].arguments.contains("Vec<"));
}
