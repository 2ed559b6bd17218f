package rib

import (
	"encoding/binary"
	"slices"

	"github.com/dyetrace/dyetrace/bgp/wire"
)

// Ahead is an UPDATE that was read ahead of its turn: all of the work on it that changes nothing and
// needs no lock. So one goroutine can read the next ones of a peer while another takes this one in, and
// a single peer's feed keeps two processors busy.
//
// The zero value is ready for [Feed.Read], and may be read into anew once it was taken, or when it is to
// be taken no more. What it holds by then is kept for the next one.
type Ahead struct {
	// Body is what was read: it must stay as it is until it was taken.
	Body []byte

	update     wire.Update
	bad        error // nothing of it may be used
	come, gone batch
	rts        []wire.RouteTarget
	list       []byte   // route targets as interned
	options    *options // by which the next two were found
	denied     bool     // what it announces has no route target of the list
}

// Read decodes the body of an UPDATE (RFC 4271, 4.3), all that is behind the header of 19 bytes, for
// [Feed.Take], which tells what is wrong with it. It may be called beside all other methods, for another
// Ahead also beside itself. UPDATEs must be taken in the order in which the peer sent them, each once.
func (f *Feed) Read(a *Ahead, body []byte) {
	a.Body = body
	a.gone.clear()
	a.come.clear()
	a.denied, a.options = false, nil
	if a.bad = a.update.Parse(body); a.bad != nil {
		return
	}
	a.gone.read(f, &a.update.Unreach)
	a.come.read(f, &a.update.Reach)
	if len(a.come.routes) == 0 {
		return
	}
	a.listTargets()
	for i := range a.come.routes {
		if r := &a.come.routes[i]; r.Kind == wire.KindMulticast {
			r.Label = a.update.Attributes.PMSILabel
		}
	}
	a.judge(f, f.opts.Load())
}

// judge does what hangs on the peer's options.
func (a *Ahead) judge(f *Feed, o *options) {
	a.options = o
	if a.denied = a.update.Malformed == nil && !o.wanted(a.list); !a.denied {
		a.come.place(f.t, a.list, a.encaps())
	}
}

// ready does once more what changed since it was read, and reads ahead where the indexes have its
// routes: what another processor has read says nothing to the cache of this one.
func (a *Ahead) ready(f *Feed) {
	if o := f.opts.Load(); a.options != nil && a.options != o {
		a.judge(f, o)
	}
	a.gone.touch(f.t)
	a.come.touch(f.t)
}

func (a *Ahead) encaps() wire.Encaps { return a.update.Attributes.Encaps.Or(a.options.Default) }

// listTargets brings the route targets into the order in which they are interned.
func (a *Ahead) listTargets() {
	a.rts = a.update.Attributes.AppendRouteTargets(a.rts[:0])
	slices.Sort(a.rts)
	a.list = a.list[:0]
	for _, rt := range slices.Compact(a.rts) {
		a.list = binary.BigEndian.AppendUint64(a.list, uint64(rt))
	}
}
