use super::*;

#[test]
fn every_mutant_is_killed_with_its_stated_bias() {
    for trial in try_all().unwrap() {
        if !(trial.is_killed() && trial.is_as_stated()) {
            let (n, d) = trial.mutant.bias;
            eprintln!(
                "{} on {}: right {}, mutant {} stated {n}/{d}",
                trial.mutant.name, trial.case, trial.right, trial.distance
            );
        }
    }
}
