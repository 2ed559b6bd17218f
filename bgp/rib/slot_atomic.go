//go:build !amd64 || race

package rib

import "sync/atomic"

// setSlot is what any processor keeps in order, and the race detector can follow.
func setSlot(p *uint64, s uint64) { atomic.StoreUint64(p, s) }
