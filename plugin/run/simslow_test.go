package run

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// slowCloud is a cloud where packets from and to one host take long, and where one guest takes long to answer;
// and how its pairs are probed.
func slowCloud(seed uint64, n int, slow time.Duration, loss float64) (random *rand.Rand, c *simCloud, o options) {
	random = rand.New(rand.NewPCG(seed, uint64(slow)))
	c = newSimCloud(random, 6)
	c.loss = loss
	far, sleepy := random.IntN(simHosts), random.IntN(len(c.guests))
	c.late = func(from, to int) time.Duration {
		if from != to && (from == far || to == far) {
			return slow
		}
		return 0
	}
	sleeps := c.guests[sleepy]
	c.lateGuest = func(g *simGuest) time.Duration {
		if g == sleeps {
			return slow
		}
		return 0
	}
	return random, c, options{test: testOf(nil), scheme: []stain.Scheme{0, stain.TCP, stain.ICMP}[n%3]}
}

// TestLastIsLate has three probes of a pair be lost by chance, and the last one be late by more than the first
// look at it: it has as much time as they had. Two such pairs are in these clouds.
func TestLastIsLate(t *testing.T) {
	t.Parallel()
	for _, n := range []int{904, 6334} {
		synctest.Test(t, func(t *testing.T) {
			random, c, o := slowCloud(1+uint64(n), n, 130*time.Millisecond, 0.01)
			pairs, paths := pathsBy(t, c.snapshot(t), allPairs, o.plan)
			many := false
			for _, p := range newSimAgents(c, random, nil).play(o, pairs, paths) {
				many = many || p.GetProbes() > 3
				if p.GetVerdict() != dyetracev1.Verdict_VERDICT_HEALTHY {
					t.Errorf("cloud %d: %s → %s: %v after %d probes: %s", n, p.GetSrc().GetName(), p.GetDst().GetName(), p.GetVerdict(), p.GetProbes(), p.GetCause())
				}
			}
			if !many {
				t.Errorf("cloud %d: no pair took four probes: not the case that this is about", n)
			}
		})
	}
}

// TestSimulatedSlow has whole clouds where packets between some hosts take long, each way, and some guests take
// long to answer: with connection tracking on their way that takes no answer to a probe which was withdrawn or
// followed by another. None is called faulty, and almost all are healthy, with how long it took.
func TestSimulatedSlow(t *testing.T) {
	t.Parallel()
	for _, slow := range []time.Duration{60 * time.Millisecond, 130 * time.Millisecond, 200 * time.Millisecond, 300 * time.Millisecond, 600 * time.Millisecond} {
		for _, loss := range []float64{0, 0.01} {
			type counts struct {
				pairs, healthy, unknown, quick int
				said, why                      []string // what is faulty, and why others are unknown
			}
			var sum counts
			for _, n := range simulateEach(t, *simWorlds, func(t *testing.T, n int) (k counts) {
				random, c, o := slowCloud(*simSeed+uint64(n), n, slow, loss)
				pairs, paths := pathsBy(t, c.snapshot(t), allPairs, o.plan)
				for _, p := range newSimAgents(c, random, nil).play(o, pairs, paths) {
					k.pairs++
					switch p.GetVerdict() {
					case dyetracev1.Verdict_VERDICT_HEALTHY:
						k.healthy++
						from, to := c.named(p.GetSrc().GetName()), c.named(p.GetDst().GetName())
						if rtt := time.Duration(p.GetRttNs()); rtt > 0 && rtt < c.late(from.host, to.host)+c.lateGuest(to)+c.late(to.host, from.host) {
							k.quick++
						}
					case dyetracev1.Verdict_VERDICT_UNKNOWN:
						k.unknown++
						k.why = append(k.why, fmt.Sprintf("cloud %d, by %v: %s → %s: after %d probes: %s", n, o.scheme, p.GetSrc().GetName(), p.GetDst().GetName(), p.GetProbes(), p.GetCause()))
					default:
						k.said = append(k.said, fmt.Sprintf("cloud %d, by %v: %s → %s: %v after %d probes: %s", n, o.scheme, p.GetSrc().GetName(), p.GetDst().GetName(), p.GetVerdict(), p.GetProbes(), p.GetCause()))
					}
				}
				return k
			}) {
				sum.pairs, sum.healthy, sum.unknown, sum.quick = sum.pairs+n.pairs, sum.healthy+n.healthy, sum.unknown+n.unknown, sum.quick+n.quick
				sum.said, sum.why = append(sum.said, n.said...), append(sum.why, n.why...)
			}
			t.Logf("%v, loss %g %%: of %d pairs %d are healthy, %d unknown: %s", slow, 100*loss, sum.pairs, sum.healthy, sum.unknown, strings.Join(sum.why[:min(len(sum.why), 5)], "; "))
			if len(sum.said) > 0 || sum.healthy < sum.pairs*98/100 || sum.quick > 0 {
				t.Errorf("%v, loss %g %%: %d of %d pairs are healthy; %d in less time than that takes; others: %s", slow, 100*loss, sum.healthy, sum.pairs, sum.quick, strings.Join(sum.said, "; "))
			}
		}
	}
}
