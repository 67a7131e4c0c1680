use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;

#[test]
fn every_mutant_is_killed_with_its_bias() {
    let trials = try_all().unwrap();
    let text = |Trial { mutant, case, right, distance }: &Trial| {
        let (num, den) = mutant.bias;
        format!(
            "{} on {case}: {distance}, written {num}/{den}; the right code {right}",
            mutant.name
        )
    };
    let wrong: Vec<String> = trials
        .iter()
        .filter(|trial| !trial.is_killed() || !trial.is_as_written())
        .map(text)
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn names_in(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            names_in(&path, found);
            continue;
        }
        if path.ends_with("proof/mutants/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for call in text.split("mutate!(").skip(1) {
            // The names stand before the first comma: "a" | "b".
            let names = call.split(',').next().unwrap_or_default();
            found.extend(names.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
}

#[test]
fn the_list_and_the_sources_name_the_same_mutants() {
    let mut found = BTreeSet::new();
    names_in(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    for not_a_mutant in ["any", "name", "td/name", "lift/name"] {
        found.remove(not_a_mutant);
    }
    let listed: BTreeSet<String> = all().iter().map(|mutant| mutant.name.to_owned()).collect();
    assert_eq!(listed.len(), all().len(), "two mutants share a name");
    assert_eq!(found, listed);
}
