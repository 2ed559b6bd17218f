package agent

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

// TestNews: the first change is told soon, many are told together and not too often, and what does not
// fit is said to be there.
func TestNews(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type told struct {
			at time.Duration
			m  *dyetracev1.Changes
		}
		var mu sync.Mutex
		var all []told
		began := time.Now()
		n := news{bridge: "br-int", tell: func(m *dyetracev1.Changes) {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, told{time.Since(began), m})
		}}
		n.add("a")
		n.add("a")
		n.add("b")
		time.Sleep(20 * time.Millisecond)
		for i := range 3 * maxNews {
			n.add(fmt.Sprint(i))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(all) != 2 || all[0].at != newsGather || all[1].at != newsGather+newsEvery {
			t.Fatalf("told %v, want twice: after %v, and %v later", all, newsGather, newsEvery)
		}
		if m := all[0].m; m.Bridge != "br-int" || len(m.Matches) != 2 || m.More {
			t.Errorf("first: %v", m)
		}
		if m := all[1].m; len(m.Matches) != maxNews || !m.More {
			t.Errorf("second: %d matches, more %t", len(m.Matches), m.More)
		}
	})
}
