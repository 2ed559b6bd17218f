// Package sequential decides how many probes are enough: Wald's sequential probability ratio test
// for loss, intervals for its rate, and digests of latencies. It does no I/O, knows no time and
// draws no random numbers; what a probe is, and which of them count, is for its callers to say.
//
// # Loss
//
// A [Plan] has two rates: what is allowed (P0) and what is too much (P1). After each probe the
// likelihood ratio of the two says [Above], [Within], or that another probe is needed (A. Wald,
// "Sequential Tests of Statistical Hypotheses", 1945). Alpha bounds the chance that a path which
// loses no more than P0 is called Above, Beta that one which loses P1 or more is called Within; in
// between either may come out, and Max bounds how long that takes. Wald's boundaries keep
// alpha ≤ Alpha/(1-Beta) and beta ≤ Beta/(1-Alpha). Max makes neither more, and leaves some [Open];
// how many, and what else a plan does exactly, the tests compute.
//
// A [Guard] asks the same question for ever (E. S. Page, "Continuous Inspection Schemes", 1954): it
// forgets what speaks for a healthy path, so that a fault which begins after a year is found as
// soon as one that was there from the start.
//
// # Latency
//
// A [Digest] has buckets whose bounds grow by a constant factor: any quantile is off by at most
// 1 %, digests of parts add up to the digest of the whole, and no digest takes more than some
// hundreds of counters.
package sequential
