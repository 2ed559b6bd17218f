package run

import (
	"time"

	"github.com/dyetrace/dyetrace/plugin/verdict"
)

// A fault of a host turns hundreds of verdicts within seconds, one after the other. What they have in
// common is looked at when nobody is examined any more, and inferAtMost after the first that changed
// though there is; inferTimes of what the last look took later, if that is longer.
const (
	inferAtMost = 2 * time.Second
	inferTimes  = 20
)

// inference is when it is looked at what verdicts have in common.
type inference struct {
	since time.Time // the first that changed since; zero for none
	next  time.Time // not before
}

// step looks at it, if verdicts that are stored have changed and it is time, and returns when it will be.
func (i *inference) step(f *feed, book Book, quiet bool, now time.Time) (wake time.Time) {
	if !f.news.Load() {
		return now.Add(tick)
	}
	if i.since.IsZero() {
		i.since = now
	}
	at := i.next
	if late := i.since.Add(inferAtMost); !quiet && late.After(at) {
		at = late
	}
	if now.Before(at) {
		return at
	}
	f.news.Store(false)
	f.infer(verdict.Infer(f.standing(), book.Snapshot().Racks()))
	i.since, i.next = time.Time{}, now.Add(inferTimes*time.Since(now))
	return now.Add(tick)
}
