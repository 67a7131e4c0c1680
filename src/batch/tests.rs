use super::*;
use crate::chance::Purpose;
use crate::chance::rng;
use crate::shaping::Preset;
use crate::tree::TokenTree;
use crate::verify::law::Law;
use crate::verify::lazy::Source;

const VOCAB: usize = 40;

/// Numbers that look random, from a counter.
fn number(counter: u32) -> f32 {
    let words = rng::philox([11, 13], [counter, 0, Purpose::Draft as u32, 9]);
    (rng::uniform(words[0], words[1]) * 6.0) as f32
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let sum: f32 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x.exp() / sum).collect()
}

/// Drafts of different forms and laws with both sides' rows, one after the other.
struct Setting {
    drafts: Vec<Draft>,
    drafted: Vec<Vec<f32>>,
    index: Vec<i64>,
    logits: Vec<f32>,
    params: Vec<Params>,
    addresses: Addresses,
}

impl Setting {
    fn new() -> Self {
        let forms: [(&[i64], Law); 6] = [
            (&[-1, 0, 1, 2], Law::Chain),
            (&[-1], Law::Deterministic),
            (&[-1, 0, 0, 1, 1, 2], Law::Iid),
            (&[-1, 0, 0, 0], Law::Swor),
            (&[-1, 0, 1], Law::Coupled),
            (&[-1, 0, 0, 2, 2], Law::Unknown),
        ];
        let mut setting = Self {
            drafts: Vec::new(),
            drafted: Vec::new(),
            index: (0..8).collect(),
            logits: Vec::new(),
            params: Vec::new(),
            addresses: Addresses { seeds: Vec::new(), positions: Vec::new() },
        };
        for (b, (parents, law)) in (0_u32..).zip(forms.into_iter().cycle().take(18)) {
            let tokens = (0..parents.len() as i64).map(|node| (node * 7 + i64::from(b)) % 40);
            let tree = TokenTree::new(parents).unwrap();
            setting.drafts.push(Draft::new(tree, tokens.collect(), law, None).unwrap());
            let at = |row: usize, side: u32| -> Vec<f32> {
                (0..VOCAB as u32).map(|x| number((b * 8 + row as u32) * 100 + x + side)).collect()
            };
            setting.drafted.push((0..8).flat_map(|row| softmax(&at(row, 50_000))).collect());
            setting.logits.extend((0..parents.len()).flat_map(|row| at(row, 0)));
            let top_k = if b % 3 == 0 { 5 } else { 0 };
            let temperature = [1.0, 0.7, 0.0][b as usize % 3];
            setting
                .params
                .push(Params::new(temperature, top_k, 0.9, 0.0, Preset::Transformers).unwrap());
            setting.addresses.seeds.push(u64::from(b) * 1_000_003);
            setting.addresses.positions.push(u64::from(b) + 4);
        }
        setting
    }

    fn drafter(&self, b: usize) -> DrafterRows<'_> {
        if !self.drafts[b].law().is_sampled() {
            return DrafterRows::NONE;
        }
        let source = Source::Probabilities(RawRows::from_f32(&self.drafted[b], VOCAB).unwrap());
        DrafterRows { source, index: &self.index[..self.drafts[b].num_nodes()], vocab: None }
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            drafts: self.drafts.iter().collect(),
            drafters: (0..self.drafts.len()).map(|b| self.drafter(b)).collect(),
            logits: Logits::Packed(RawRows::from_f32(&self.logits, VOCAB).unwrap()),
            params: Each::Own(&self.params),
            rules: Each::Same("auto"),
            lossy: Each::Same(None),
            edits: &[],
            top_logprobs: Each::Same(0),
            addresses: self.addresses.clone(),
        }
    }

    /// The batch in another order, its logits as matrices of their own.
    fn reversed(&self) -> VerdictBatch {
        let batch = self.batch();
        let packed = RawRows::from_f32(&self.logits, VOCAB).unwrap();
        let offsets = Offsets::of(batch.drafts.iter().map(|draft| draft.num_nodes()));
        let part = |b| packed.part(offsets.part(b)).unwrap();
        let rows: Vec<RawRows<'_>> = (0..self.drafts.len()).rev().map(part).collect();
        let params: Vec<Params> = self.params.iter().rev().copied().collect();
        Batch {
            drafts: batch.drafts.iter().rev().copied().collect(),
            drafters: batch.drafters.iter().rev().copied().collect(),
            logits: Logits::Own { rows, padded: false },
            params: Each::Own(&params),
            rules: Each::Same("auto"),
            lossy: Each::Same(None),
            edits: &[],
            top_logprobs: Each::Same(0),
            addresses: Addresses {
                seeds: self.addresses.seeds.iter().rev().copied().collect(),
                positions: self.addresses.positions.iter().rev().copied().collect(),
            },
        }
        .verify()
        .unwrap()
    }
}

#[test]
fn a_batch_gives_the_verdicts_of_its_sequences_alone() {
    let setting = Setting::new();
    let batch = setting.batch();
    let found = batch.verify().unwrap();
    let reversed = setting.reversed();
    assert_eq!(found.len(), 18);
    for (b, request) in batch.requests().unwrap().into_iter().enumerate() {
        let Request { draft, drafter, target, rule, lossy, noise, .. } = request;
        let alone = verify::verify_shaped(draft, drafter, target, rule, lossy, noise).unwrap();
        assert_eq!(found.get(b), alone, "sequence {b}");
        assert_eq!(reversed.get(17 - b), alone, "sequence {b} from the end");
    }
}

#[test]
fn threads_change_nothing() {
    let setting = Setting::new();
    let batch = setting.batch();
    let wanted = batch.verify().unwrap();
    let requests = batch.requests().unwrap();
    threads::set_num_threads(7).unwrap();
    for threads in [1, 2, 7] {
        let found = threads::map(&requests, threads, |request| {
            let &Request { draft, drafter, target, rule, lossy, noise, .. } = request;
            verify::verify_shaped(draft, drafter, target, rule, lossy, noise).unwrap()
        });
        for (b, verdict) in found.into_iter().enumerate() {
            assert_eq!(verdict, wanted.get(b));
        }
    }
}

#[test]
fn padding_is_never_read() {
    let setting = Setting::new();
    let mut batch = setting.batch();
    let wanted = batch.verify().unwrap();
    let mut padded = vec![f32::NAN; 18 * 8 * VOCAB];
    let mut start = 0;
    for (b, draft) in setting.drafts.iter().enumerate() {
        let len = draft.num_nodes() * VOCAB;
        padded[b * 8 * VOCAB..][..len].copy_from_slice(&setting.logits[start..start + len]);
        start += len;
    }
    let rows: Vec<RawRows<'_>> =
        padded.chunks(8 * VOCAB).map(|part| RawRows::from_f32(part, VOCAB).unwrap()).collect();
    batch.logits = Logits::Own { rows: rows.clone(), padded: true };
    assert_eq!(batch.verify().unwrap(), wanted);
    batch.logits = Logits::Own { rows, padded: false };
    let error = batch.verify().unwrap_err();
    assert_eq!((error.slug(), error.sequence()), ("shape_mismatch", Some(0)));
}

#[test]
fn the_first_bad_sequence_is_named_and_nothing_comes_out() {
    let mut setting = Setting::new();
    let offsets = Offsets::of(setting.drafts.iter().map(Draft::num_nodes));
    for sequence in [5, 11, 16] {
        setting.logits[offsets.part(sequence).start * VOCAB + 3] = f32::NAN;
    }
    let error = setting.batch().verify().unwrap_err();
    assert_eq!((error.slug(), error.sequence(), error.row()), ("row_not_finite", Some(5), Some(0)));
}

#[test]
fn arrays_that_do_not_fit_are_refused() {
    let setting = Setting::new();
    let mut batch = setting.batch();
    batch.addresses.seeds.pop();
    assert_eq!(batch.verify().unwrap_err().slug(), "shape_mismatch");
    let mut batch = setting.batch();
    batch.rules = Each::Own(&["auto"]);
    assert_eq!(batch.verify().unwrap_err().slug(), "shape_mismatch");
    let mut batch = setting.batch();
    batch.drafts.pop();
    assert_eq!(batch.verify().unwrap_err().slug(), "shape_mismatch");
    for (offsets, sequence) in [(&[1, 2][..], None), (&[], None), (&[0, 2, 2], Some(1))] {
        let error = Offsets::new(offsets).unwrap_err();
        assert_eq!((error.slug(), error.sequence()), ("shape_mismatch", sequence));
    }
}

#[test]
fn packed_drafts_are_those_given_one_by_one() {
    let offsets = Offsets::new(&[0, 2, 3]).unwrap();
    let drafts =
        unpack(&offsets, &[-1, 0, -1], &[5, 6, 7], Each::Same(Law::Deterministic), None).unwrap();
    assert_eq!(drafts[0].tokens(), [5, 6]);
    assert_eq!(drafts[1].num_nodes(), 1);
    let error = unpack(&offsets, &[-1, 0, 0], &[5, 6, 7], Each::Same(Law::Deterministic), None)
        .unwrap_err();
    assert_eq!((error.slug(), error.sequence(), error.node()), ("bad_parent", Some(1), Some(0)));
    assert!(unpack(&offsets, &[-1, 0], &[5, 6, 7], Each::Same(Law::Deterministic), None).is_err());
}

#[test]
fn chains_end_at_their_lengths() {
    let tokens = [vec![5, 6], vec![7, -1], vec![-1, -1]];
    let drafts = chains(&tokens, &[2, 1, 0], &[1, 2, -1], Law::Deterministic).unwrap();
    let found: Vec<&[i64]> = drafts.iter().map(Draft::tokens).collect();
    assert_eq!(found, [&[1, 5, 6][..], &[2, 7], &[-1]]);
    for (lengths, slug) in [
        ([2, 2, 0], "token_out_of_vocabulary"),
        ([2, 3, 0], "param_out_of_range"),
        ([2, -1, 0], "param_out_of_range"),
    ] {
        let error = chains(&tokens, &lengths, &[1, 2, 3], Law::Deterministic).unwrap_err();
        assert_eq!((error.slug(), error.sequence()), (slug, Some(1)));
    }
    assert!(chains(&tokens, &[2, 1], &[1, 2, 3], Law::Deterministic).is_err());
    assert!(chains(&tokens, &[2, 1, 0], &[1, 2], Law::Deterministic).is_err());
}

#[test]
fn a_cut_batch_is_the_cut_verdicts() {
    let found = Setting::new().batch().verify().unwrap();
    let ones = vec![1; found.len()];
    let cut = found.cut(&ones).unwrap();
    assert!(cut.path.is_empty());
    let whole: Vec<i64> = found.offsets.windows(2).map(|p| (p[1] - p[0]) as i64).collect();
    assert_eq!(found.cut(&whole).unwrap(), found);
    let mut wrong = whole.clone();
    wrong[4] += 1;
    assert_eq!(found.cut(&wrong).unwrap_err().sequence(), Some(4));
    assert!(found.cut(&ones[1..]).is_err());
}
