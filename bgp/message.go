package bgp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jwhited/corebgp"
)

// A BGP message (RFC 4271, section 4.1):
//
//	 0                16     18     19
//	┌────────────────┬──────┬──────┬─────────┐
//	│ marker, all 1s │length│ type │ body    │   length counts the header too
//	└────────────────┴──────┴──────┴─────────┘
const (
	headerLen  = 19
	maxMessage = 4096

	typeOpen         = 1
	typeUpdate       = 2
	typeNotification = 3
	typeKeepalive    = 4
	typeRefresh      = 5 // RFC 2918
)

// minLen of messages, by type (RFC 4271, section 6.1).
var minLen = [...]int{typeOpen: 29, typeUpdate: 23, typeNotification: 21, typeKeepalive: 19, typeRefresh: 23}

var marker = bytes.Repeat([]byte{0xff}, 16)

// appendMessage appends a message of at most [maxMessage] octets to b.
func appendMessage(b []byte, kind byte, body []byte) []byte {
	b = append(b, marker...)
	b = binary.BigEndian.AppendUint16(b, uint16(headerLen+len(body)))
	b = append(b, kind)
	return append(b, body...)
}

// checkHeader returns the length of a message, header included, or what to answer to one that has
// no such header (RFC 4271, section 6.1). A type that is not known may have any length.
func checkHeader(h []byte) (int, *corebgp.Notification) {
	if !bytes.Equal(h[:16], marker) {
		return 0, &corebgp.Notification{Code: 1, Subcode: 1}
	}
	n, kind, least := int(binary.BigEndian.Uint16(h[16:])), int(h[18]), headerLen
	if kind < len(minLen) {
		least = max(minLen[kind], headerLen)
	}
	if n < least || n > maxMessage || kind == typeKeepalive && n != headerLen {
		return 0, &corebgp.Notification{Code: 1, Subcode: 2, Data: bytes.Clone(h[16:18])}
	}
	return n, nil
}

// endOfRIB is the body of an UPDATE that says of a family that all was said: an MP_UNREACH_NLRI with
// no route, and nothing else (RFC 4724, section 2).
func endOfRIB(f family) []byte {
	return []byte{0, 0, 0, 6, 0x80, 15, 3, byte(f.afi >> 8), byte(f.afi), f.safi}
}

// parseEndOfRIB is the other way of [endOfRIB]. Attributes may come with a long length (flag 0x10).
func parseEndOfRIB(body []byte) (family, bool) {
	n := len(body)
	if n != 10 && n != 11 || body[0] != 0 || body[1] != 0 || body[2] != 0 || int(body[3]) != n-4 || body[5] != 15 {
		return family{}, false
	}
	long := body[4]&0x10 != 0
	if long != (n == 11) || long && body[6] != 0 || body[n-4] != 3 {
		return family{}, false
	}
	return family{binary.BigEndian.Uint16(body[n-3:]), body[n-1]}, true
}

// refresh is the body of a ROUTE-REFRESH (RFC 2918, section 3).
func refresh(f family) []byte { return []byte{byte(f.afi >> 8), byte(f.afi), 0, f.safi} }

const (
	capMultiprotocol = 1  // RFC 4760
	capRefresh       = 2  // RFC 2918
	capRestart       = 64 // RFC 4724
	capFourOctetAS   = 65 // RFC 6793
)

// capabilities of ours; corebgp adds four-octet AS numbers. Graceful restart is without families: we
// help peers that restart, and forward nothing that would outlive a restart of ours (RFC 4724,
// section 3). Route refresh is for GoBGP, which lets itself be asked only by who can be asked; we can,
// and have nothing to answer.
func capabilities(fs []family) []corebgp.Capability {
	caps := []corebgp.Capability{{Code: capRefresh}, {Code: capRestart, Value: []byte{0, 0}}}
	for _, f := range fs {
		caps = append(caps, corebgp.NewMPExtensionsCapability(f.afi, f.safi))
	}
	return caps
}

// offer is what the capabilities of a peer's OPEN come to.
type offer struct {
	families []family
	refresh  bool
	fourAS   bool
	// restarts says that the peer knows graceful restart; restartTime is how long it may take.
	restarts    bool
	restartTime time.Duration
	// preserved are the families it can restart, with whether forwarding went on until now.
	preserved map[family]bool
}

// parseOffer reads capabilities. Those that are unknown or malformed are not there (RFC 5492,
// section 4).
func parseOffer(caps []corebgp.Capability) offer {
	o := offer{preserved: map[family]bool{}}
	for _, c := range caps {
		v := c.Value
		switch {
		case c.Code == capMultiprotocol && len(v) == 4:
			if f := (family{binary.BigEndian.Uint16(v), v[3]}); !slices.Contains(o.families, f) {
				o.families = append(o.families, f)
			}
		case c.Code == capRefresh:
			o.refresh = true
		case c.Code == capFourOctetAS && len(v) == 4:
			o.fourAS = true
		case c.Code == capRestart && len(v) >= 2 && len(v)%4 == 2:
			o.restarts = true
			o.restartTime = time.Duration(binary.BigEndian.Uint16(v)&0x0fff) * time.Second
			for v = v[2:]; len(v) > 0; v = v[4:] {
				o.preserved[family{binary.BigEndian.Uint16(v), v[2]}] = v[3]&0x80 != 0
			}
		}
	}
	return o
}

// covers tells whether a restart spares all of fs, and whether forwarding went on for all of them.
func (o offer) covers(fs []family) (spared, kept bool) {
	spared, kept = len(fs) > 0, len(fs) > 0
	for _, f := range fs {
		k, ok := o.preserved[f]
		spared, kept = spared && ok, kept && k
	}
	return spared, kept
}

// names of the offer, for people.
func (o offer) names() []string {
	var names []string
	for _, f := range o.families {
		names = append(names, f.String())
	}
	if o.fourAS {
		names = append(names, "four-octet-as")
	}
	if o.refresh {
		names = append(names, "route-refresh")
	}
	if o.restarts {
		names = append(names, fmt.Sprintf("graceful-restart %v", o.restartTime))
	}
	return names
}

// open is what an OPEN says outside of its capabilities (RFC 4271, section 4.2).
type open struct {
	as       uint32
	holdTime uint16
	id       uint32
	fourAS   bool
}

// parseOpen reads the body of an OPEN that is well-formed as far as it goes; corebgp refuses others.
func parseOpen(b []byte) (open, bool) {
	if len(b) < 10 || int(b[9]) != len(b)-10 {
		return open{}, false
	}
	o := open{as: uint32(binary.BigEndian.Uint16(b[1:])), holdTime: binary.BigEndian.Uint16(b[3:]), id: binary.BigEndian.Uint32(b[5:])}
	for p := b[10:]; len(p) > 0; {
		if len(p) < 2 || len(p) < 2+int(p[1]) {
			return open{}, false
		}
		kind, v := p[0], p[2:2+int(p[1])]
		p = p[2+len(v):]
		for kind == 2 && len(v) > 0 { // capabilities, RFC 5492
			if len(v) < 2 || len(v) < 2+int(v[1]) {
				return open{}, false
			}
			if v[0] == capFourOctetAS && v[1] == 4 {
				o.as, o.fourAS = binary.BigEndian.Uint32(v[2:]), true
			}
			v = v[2+int(v[1]):]
		}
	}
	return o, true
}

// withFourOctetAS adds the capability to the body of an OPEN that lacks it, for corebgp, which takes
// no peer without; false if there is no room. To such a peer and from it, AS_PATHs have two octets
// for each AS (RFC 6793, section 4.2.3).
func withFourOctetAS(b []byte, o open) ([]byte, bool) {
	if int(b[9])+8 > 255 {
		return b, false
	}
	b = append(bytes.Clone(b), 2, 6, capFourOctetAS, 4)
	b = binary.BigEndian.AppendUint32(b, o.as)
	b[9] += 8
	return b, true
}

// describe says in words what a NOTIFICATION means.
func describe(n *corebgp.Notification) string {
	_, words, _ := strings.Cut(n.Error(), " ")
	return "NOTIFICATION " + words
}
