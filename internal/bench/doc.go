// Package bench holds what the benchmarks share: the rows they write to
// bench/<area>.json, the statistics over repetitions, and the page that
// BENCHMARKS.md is. One program below cmd/ measures one area and one makes the
// page.
//
// Machines are noisy, so a benchmark compares in one run: ours and the peer
// alternate, and what counts are medians and the ratios of neighbouring rounds.
// What is worse than a peer is named as plainly as what is better.
//
// It never measures inside the programs it measures: all times are of real
// processes, seen from outside or read from what they record for users anyway.
package bench
