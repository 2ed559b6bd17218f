package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestZZ(t *testing.T) {
	l := up(t)
	p := l.follow("check", "--all", "--continuous")
	p.until("healthy", 58)
	time.Sleep(3 * time.Second)
	for _, h := range []string{"hv1", "hv3"} {
		p.mu.Lock()
		from := len(p.told)
		p.mu.Unlock()
		began := time.Now()
		f, a, heal := p.namedTogether("underlay-down", h, "underlay")
		t.Log(h, f, a, heal)
		p.mu.Lock()
		for i := from; i < len(p.told); i++ {
			q := p.told[i]
			fmt.Printf("ZZ %s %.3f %s %s %s %d %.100s\n", h, p.at[i].Sub(began).Seconds(), q.Src, q.Dst, q.Verdict, q.Probes, q.Cause)
		}
		p.mu.Unlock()
		time.Sleep(4 * time.Second)
	}
	for line := range strings.Lines(l.log("controller-serve")) {
		if strings.Contains(line, "examined") || strings.Contains(line, "answers") {
			fmt.Print("ZZ ", line)
		}
	}
}
