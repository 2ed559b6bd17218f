package agent

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const (
	// maxMessage bounds a message of the controller, in bytes: the largest that is taken is an Inject of maxInject
	// probes, some 55 bytes each. Controllers send 1,024 in one.
	maxMessage = 4 << 20
	// Each run has one of these under way, and another where the controller has given up on the first.
	maxPrepare, maxAudit, maxFinish = maxRuns, 2 * maxRuns, 2 * maxRuns
	// Each run asks for the host's state before it begins, and so do examinations of continuous ones.
	maxRefresh = maxRuns
	// maxHeld bounds the Injects, and the Arms, under way, in bytes that they take. A controller has 64 probes under way from
	// one host (package pace), some 1 MB if each comes by itself; this is 4,000 of them.
	maxHeld = 64 << 20
	// heldAtLeast is what a request takes with the goroutine that works at it, portCost what a port named in it
	// takes beside its bytes on the wire.
	heldAtLeast, portCost = 16 << 10, 256
)

// lane bounds what is under way of one kind of request.
type lane struct{ free *semaphore.Weighted }

func newLane(n int64) lane { return lane{semaphore.NewWeighted(n)} }

// try has f run beside whoever calls it, unless there is no room for n more; then it returns false.
func (l lane) try(wg *sync.WaitGroup, n int64, f func()) bool {
	if !l.free.TryAcquire(n) {
		return false
	}
	wg.Go(func() {
		defer l.free.Release(n)
		f()
	})
	return true
}

// lanes are those of one session.
type lanes struct {
	prepare, inject, arm, audit, finish, refresh, explain, explore lane

	log  *slog.Logger
	tell rate.Sometimes
}

func newLanes(log *slog.Logger) *lanes {
	return &lanes{
		prepare: newLane(maxPrepare), inject: newLane(maxHeld), arm: newLane(maxHeld), audit: newLane(maxAudit), finish: newLane(maxFinish),
		refresh: newLane(maxRefresh), explain: newLane(maxExplain), explore: newLane(maxUnderlay),
		log: log, tell: rate.Sometimes{Interval: time.Second},
	}
}

// unanswered notes a request that is left without an answer, since there is no room for it: the controller waits for its own
// time, and knows nothing then.
func (l *lanes) unanswered(request string) {
	l.tell.Do(func() { l.log.Warn("request not taken", "request", request, "err", errBusy) })
}

// errBusy is the answer to what there is no room for.
var errBusy = errors.New("too many such requests are under way on this host, no more are taken")

// held is how many bytes a request takes, about.
func held(m proto.Message, ports ...[]*dyetracev1.PortRef) int64 {
	n := heldAtLeast + proto.Size(m)
	for _, p := range ports {
		n += portCost * len(p)
	}
	return int64(n)
}
