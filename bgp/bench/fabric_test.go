package bench

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/dyetrace/dyetrace/stain"
)

// fabric is VTEPs with as many hosts each, half in one VNI and half in another. Of each host there
// are two routes, its MAC and its MAC with its IP address: FRR tells both. One host of ten has moved
// before.
type fabric struct{ vteps, hosts int }

const (
	vnis       = 64
	maxMessage = 4096 // RFC 4271, section 4.1
)

func (f fabric) routes() int { return 2 * f.vteps * f.hosts }

func (f fabric) vtep(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}) }

// vni of a host, by its number in the fabric.
func (f fabric) vni(host int) uint32 {
	vtep, half := host/f.hosts, host%f.hosts/((f.hosts+1)/2)
	return uint32(10000 + (2*vtep+half)%vnis)
}

func (f fabric) mac(host int) stain.MAC { return stain.MACFromUint64(0x02<<40 | uint64(host)) }

func (f fabric) seq(host int) uint32 {
	if host%10 == 9 {
		return 1 + uint32(host/10%3)
	}
	return 0
}

// rd is that of FRR: router:number of the VNI.
func (f fabric) rd(host int) uint64 {
	a := f.vtep(host / f.hosts).As4()
	return 1<<48 | uint64(binary.BigEndian.Uint32(a[:]))<<16 | uint64(f.vni(host)&0xffff)
}

// appendRoutes appends both routes of a host.
func (f fabric) appendRoutes(b []byte, host int, label uint32) []byte {
	mac := f.mac(host)
	for _, bits := range []byte{0, 32} {
		b = append(b, 2, 33+bits/8)
		b = binary.BigEndian.AppendUint64(b, f.rd(host))
		b = append(b, make([]byte, 10+4)...)
		b = append(append(b, 48), mac[:]...)
		if b = append(b, bits); bits > 0 {
			b = binary.BigEndian.AppendUint32(b, 10<<24|uint32(host))
		}
		b = append(b, byte(label>>16), byte(label>>8), byte(label))
	}
	return b
}

// twins is how long both routes of a host are.
const twins = 35 + 39

// announce returns the messages that tell all routes, as a route reflector sends them: what has the
// same attributes together, in messages as full as it makes them.
func (f fabric) announce() []byte {
	var out bytes.Buffer
	for vtep := range f.vteps {
		groups := map[[2]uint32][]int{}
		var order [][2]uint32
		for i := range f.hosts {
			host := vtep*f.hosts + i
			k := [2]uint32{f.vni(host), f.seq(host)}
			if groups[k] == nil {
				order = append(order, k)
			}
			groups[k] = append(groups[k], host)
		}
		for _, k := range order {
			attrs := f.attributes(vtep, k[0], k[1])
			room := (maxMessage - 19 - 4 - len(attrs) - 4 - 9) / twins
			for hosts := groups[k]; len(hosts) > 0; {
				n := min(room, len(hosts))
				nlri := append([]byte{0, 25, 70, 4}, f.vtep(vtep).AsSlice()...)
				nlri = append(nlri, 0)
				for _, host := range hosts[:n] {
					nlri = f.appendRoutes(nlri, host, k[0])
				}
				out.Write(update(0x90, 14, nlri, attrs))
				hosts = hosts[n:]
			}
		}
	}
	out.Write(endOfRIB())
	return out.Bytes()
}

// attributes of a route that a reflector passes on.
func (f fabric) attributes(vtep int, vni, seq uint32) []byte {
	b := []byte{0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 5, 4, 0, 0, 0, 100} // ORIGIN, AS_PATH, LOCAL_PREF
	b = append(append(b, 0x80, 9, 4), f.vtep(vtep).AsSlice()...)     // ORIGINATOR_ID
	b = append(b, 0x80, 10, 4, 10, 0, 0, 1)                          // CLUSTER_LIST
	c := binary.BigEndian.AppendUint64(nil, target(vni))
	c = append(c, 3, 0x0c, 0, 0, 0, 0, 0, 8) // VXLAN
	if seq > 0 {
		c = append(c, 6, 0, 0, 0)
		c = binary.BigEndian.AppendUint32(c, seq)
	}
	return append(append(b, 0xc0, 16, byte(len(c))), c...)
}

// target is the route target of a VNI.
func target(vni uint32) uint64 { return 0x0002<<48 | 64512<<32 | uint64(vni) }

// withdraw returns the messages that take all back, as FRR does: labels 0, no attributes, and of
// whichever VTEPs as much as fits.
func (f fabric) withdraw() []byte {
	var out bytes.Buffer
	const perMessage = (maxMessage - 19 - 4 - 4 - 3) / twins
	all := f.vteps * f.hosts
	for first := 0; first < all; first += perMessage {
		nlri := []byte{0, 25, 70}
		for host := first; host < min(first+perMessage, all); host++ {
			nlri = f.appendRoutes(nlri, host, 0)
		}
		out.Write(update(0x90, 15, nlri, nil))
	}
	return out.Bytes()
}

// update is a message with an attribute of a long length, and others after it.
func update(flags, code byte, value, others []byte) []byte {
	b := []byte{0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(value)+len(others)))
	b = append(b, flags, code)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	return message(2, append(append(b, value...), others...))
}

func endOfRIB() []byte { return message(2, []byte{0, 0, 0, 6, 0x80, 15, 3, 0, 25, 70}) }

func message(kind byte, body []byte) []byte {
	n := 19 + len(body)
	if n > maxMessage {
		panic(fmt.Sprintf("message of %d bytes", n))
	}
	b := append(bytes.Repeat([]byte{0xff}, 16), byte(n>>8), byte(n), kind)
	return append(b, body...)
}
