package run

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/stain"
)

// TestRound: in a patrol each instance is destination again and again, and each pair is probed, in order or out of it.
func TestRound(t *testing.T) {
	t.Parallel()
	const slot = 100 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t, site(t, 8))
		began := time.Now()
		at := map[string][]time.Duration{} // by instance that is destination, and by pair
		w.lose = func(pair string, _ stain.Scheme, n int) bool {
			now := time.Since(began)
			_, dst, _ := strings.Cut(pair, " ")
			at[dst], at[pair] = append(at[dst], now), append(at[pair], now)
			broken := now > 20*time.Second && now < 25*time.Second
			lossy := now > 60*time.Second && now < 90*time.Second && pair == "i1 i2" && n%4 == 0
			return broken && strings.Contains(pair, "i3") || lossy
		}
		watchTown(t, w, testConfig, &dyetracev1.ProbeOptions{}, 3*time.Minute, func() {})
		if len(at) != 8+8*7 {
			t.Fatalf("%d instances and pairs were probed, want all", len(at))
		}
		// gaps are between two probes of the same one, in order of their length.
		gaps := func(from, to time.Duration, pairs bool, without string) (all []time.Duration) {
			for name, at := range at {
				if strings.Contains(name, without) {
					continue
				}
				for i := 1; i < len(at); i++ {
					if strings.Contains(name, " ") == pairs && at[i-1] >= from && at[i] <= to {
						all = append(all, at[i]-at[i-1])
					}
				}
			}
			slices.Sort(all)
			return all
		}
		for _, c := range []struct {
			what      string
			from, to  time.Duration
			share     float64
			dst, pair time.Duration // slots
			without   string
		}{
			{"in order", 5 * time.Second, 20 * time.Second, 1, 3, 14, "-"},
			{"while one is silent", 22 * time.Second, 25 * time.Second, 1, 6, 2 * 14, "i3"},
			{"when that is over", 25 * time.Second, 28 * time.Second, 1, 6, 2 * 14, "i3"},
			{"out of order", 40 * time.Second, 60 * time.Second, .99, 4, 2 * 14, "-"},
			{"while one is tested", 60 * time.Second, 90 * time.Second, 1, 15, 4 * 14, "i1 i2"},
			{"after that", 100 * time.Second, 3 * time.Minute, .99, 4, 2 * 14, "-"},
		} {
			for pairs, slots := range map[bool]time.Duration{false: c.dst, true: c.pair} {
				all := gaps(c.from, c.to, pairs, c.without)
				if d := all[int(c.share*float64(len(all)-1))]; d > slots*slot+slot/2 {
					t.Errorf("%s: pairs %t: not probed for %v, where that is exceeded in %.2g of all cases; want %v", c.what, pairs, d, 1-c.share, slots*slot)
				}
			}
		}
	})
}
