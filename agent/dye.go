package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dyetrace/dyetrace/dataplane/packetio"
)

// syncDyePort sees to it that there is a dye port and that it is read; changed says that
// it was not, or is another one. Caller holds mu.
func (b *bridge) syncDyePort(ctx context.Context) (changed bool, err error) {
	dye, err := b.sw.EnsureDyePort(ctx, b.name)
	if err != nil {
		return false, fmt.Errorf("dye port: %w", err)
	}
	if dye != b.dye {
		b.closePort()
		b.dye, b.read = dye, time.Time{}
		changed = true
	}
	if b.port.Load() == nil {
		if err := b.openPort(); err != nil {
			return true, err
		}
		changed = true
	}
	return changed, nil
}

// openPort starts to read the dye port. Caller holds mu.
func (b *bridge) openPort() error {
	port, err := packetio.Open(b.dye.Name, packetio.Options{})
	if err != nil {
		return fmt.Errorf("dye port: %w", err)
	}
	b.port.Store(port)
	b.receivers.Go(func() { b.receive(port) })
	return nil
}

// receive hands copies to the sink until the port is closed.
func (b *bridge) receive(port *packetio.Port) {
	var read tally
	for {
		err := port.Receive(func(frame []byte, atNs int64) {
			read.saw(frame)
			b.sink(b, frame, atNs)
		})
		b.done(b)
		b.counts.add(&read)
		switch {
		case err == nil:
		case errors.Is(err, packetio.ErrClosed):
			return
		default:
			// The device went away or is down: reconcile opens it again.
			b.log.Warn("reading the dye port", "err", err)
			b.dropPort(port)
			return
		}
	}
}

// closePort ends reading and waits for the reader, which never waits for mu. Caller holds mu.
func (b *bridge) closePort() {
	if port := b.port.Load(); port != nil {
		b.dropPort(port)
	}
	b.receivers.Wait()
}

// dropPort closes a port that is the one that is read; of two who do, one does.
func (b *bridge) dropPort(port *packetio.Port) {
	if !b.port.CompareAndSwap(port, nil) {
		return
	}
	_, dropped := port.Stats()
	b.ring.Add(dropped)
	if err := port.Close(); err != nil {
		b.log.Warn("closing the dye port", "err", err)
	}
}

// lostSamples counts the samples of this bridge's dye port that were lost on our side.
func (b *bridge) lostSamples() uint64 {
	n := b.lost.Load() + b.ring.Load()
	if port := b.port.Load(); port != nil {
		_, dropped := port.Stats()
		n += dropped
	}
	return n
}
