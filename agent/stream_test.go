package agent

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
	"github.com/dyetrace/dyetrace/dataplane/underlay"
)

// What cannot be streamed is told, target by target, and tried again; the others are.
func TestStream(t *testing.T) {
	t.Parallel()
	a := &Agent{cfg: Config{Host: "hv1"}, echo: newEcho(7443, 10_000, slog.New(slog.DiscardHandler))}
	t.Cleanup(func() { a.stream(nil) })
	to := func(src string, size uint32) *dyetracev1.UnderlayTarget {
		dst := netip.MustParseAddr("127.0.0.1").As16()
		m := &dyetracev1.UnderlayTarget{DstIp: dst[:], Port: 7443, Size: size, RateMilli: 1000, SuspectRateMilli: 2000}
		if src != "" {
			b := netip.MustParseAddr(src).As16()
			m.SrcIp = b[:]
		}
		return m
	}
	ask := &dyetracev1.StreamUnderlay{Set: 5, Extra: 100, Targets: []*dyetracev1.UnderlayTarget{to("", 128), to("192.0.2.77", 128), to("", 20)}}
	failed := a.stream(ask)
	if len(failed) != 3 || failed[2].Target != 2 || failed[0].Set != 5 || !strings.Contains(failed[0].Error, "no key") {
		t.Fatalf("without a key: %v", failed)
	}
	a.echo.setKey(make([]byte, underlay.KeySize))
	failed = a.stream(ask)
	if len(failed) != 2 || failed[0].Target != 1 || !strings.Contains(failed[0].Error, "192.0.2.77") ||
		failed[1].Target != 2 || !strings.Contains(failed[1].Error, "targets[2]: size: 20, want 124") {
		t.Fatalf("of an address that is not there, and a size that cannot be: %v", failed)
	}
	tried := a.echo.tried
	a.streamAgain(tried.Add(lookAgain - time.Second))
	if a.echo.tried != tried {
		t.Error("tried again at once")
	}
	a.streamAgain(tried.Add(lookAgain))
	if a.echo.tried == tried || a.echo.asked == nil {
		t.Error("not tried again")
	}
	due := a.echo.due(a.echo.tried.Add(lookAgain))
	if due != ask {
		t.Errorf("due is %v, want what was asked for", due)
	}
	if failed := a.stream(&dyetracev1.StreamUnderlay{Set: 6, Targets: ask.Targets[:1]}); len(failed) != 0 || a.echo.asked != nil {
		t.Errorf("of what can be: %v", failed)
	}
	tried = a.echo.tried
	a.tryAgain(due)
	if a.echo.tried != tried || a.echo.asked != nil {
		t.Error("an older set took the newer one's place, since it was due when that came")
	}
}
