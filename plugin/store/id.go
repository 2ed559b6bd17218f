package store

import (
	"crypto/rand"
	"encoding/binary"
	"sync"
	"time"
)

// A run's id is 60 bits in 12 characters:
//
//	| 40 bits: milliseconds since 2024-01-01 UTC | 20 bits: random |
//
// 40 bits last until 2058. Ids of one process rise strictly, so that sorting by id is sorting by
// start. Twelve characters can be read out over a telephone; a UUID cannot.
const (
	idLen        = 12
	idRandomBits = 20
)

// idAlphabet is Crockford's base 32, in its sorting order: without i, l, o and u, which are
// misread.
const idAlphabet = "0123456789abcdefghjkmnpqrstvwxyz"

var idEpoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// ids makes ids that rise strictly.
type ids struct {
	mu   sync.Mutex
	last uint64
}

// next returns an id for something that begins now.
func (g *ids) next(now time.Time) string {
	var random [4]byte
	rand.Read(random[:]) // never fails, see crypto/rand
	v := uint64(now.Sub(idEpoch).Milliseconds())<<idRandomBits |
		uint64(binary.BigEndian.Uint32(random[:]))>>(32-idRandomBits)

	g.mu.Lock()
	defer g.mu.Unlock()
	if v <= g.last {
		v = g.last + 1
	}
	g.last = v
	return formatID(v)
}

func formatID(v uint64) string {
	var b [idLen]byte
	for i := idLen - 1; i >= 0; i-- {
		b[i] = idAlphabet[v&31]
		v >>= 5
	}
	return string(b[:])
}
