package agent

import (
	"strings"
	"testing"
	"time"
)

// A tool that deletes all flows every five seconds: we are back at once for the first few times,
// then less and less often, and say so.
func TestFight(t *testing.T) {
	t.Parallel()
	var f fight
	now := time.Unix(1e9, 0)
	back, repairs := true, 0
	var gaps []time.Duration
	gone := now
	for range 60 * 60 { // an hour, second by second
		if back && now.Unix()%5 == 0 {
			f.wiped(now)
			back, gone = false, now
		}
		if !back && f.held(now) == 0 {
			back = true
			repairs++
			gaps = append(gaps, now.Sub(gone))
		}
		if err := f.err(now); (err == nil) != (f.held(now) == 0) || err != nil && !strings.Contains(err.Error(), "so as not to fight") {
			t.Fatalf("at %v: held for %v, and says %v", now, f.held(now), err)
		}
		now = now.Add(time.Second)
	}
	want := []time.Duration{0, 0, 0, 5e9, 10e9, 20e9, 40e9, 60e9, 60e9}
	for i, w := range want {
		if gaps[i] != w {
			t.Errorf("gap %d: %v, want %v", i, gaps[i], w)
		}
	}
	if repairs > 70 {
		t.Errorf("%d repairs in an hour", repairs)
	}
	// Peace: the next wipe is a first one.
	now = now.Add(fightMemory + time.Second)
	f.wiped(now)
	if f.held(now) != 0 {
		t.Errorf("after %v of peace, held for %v", fightMemory, f.held(now))
	}
}
