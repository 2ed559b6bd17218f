package stain

import (
	"fmt"
)

// MAC is an EUI-48 address, byte 0 first on the wire.
type MAC [6]byte

const hexDigits = "0123456789abcdef"

// ParseMAC reads six pairs of hexadecimal digits, of either case, with a colon
// or a hyphen between pairs, the same throughout: 52:54:00:12:34:56.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	if len(s) != 17 {
		return MAC{}, fmt.Errorf("mac %q: %d bytes, want 17 such as 52:54:00:12:34:56", s, len(s))
	}
	sep := s[2]
	if sep != ':' && sep != '-' {
		return MAC{}, fmt.Errorf("mac %q: %q between bytes, want ':' or '-'", s, sep)
	}
	for i := range m {
		hi, okHi := unhex(s[3*i])
		lo, okLo := unhex(s[3*i+1])
		if !okHi || !okLo {
			return MAC{}, fmt.Errorf("mac %q: byte %d is %q, want two hexadecimal digits", s, i, s[3*i:3*i+2])
		}
		if i > 0 && s[3*i-1] != sep {
			return MAC{}, fmt.Errorf("mac %q: %q before byte %d, want %q as before byte 1", s, s[3*i-1], i, sep)
		}
		m[i] = hi<<4 | lo
	}
	return m, nil
}

func unhex(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	}
	return 0, false
}

// MACFromUint64 returns the address in the low 48 bits of v, the form that the
// protobuf contract has; the upper 16 bits are ignored.
func MACFromUint64(v uint64) MAC {
	return MAC{byte(v >> 40), byte(v >> 32), byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

// Uint64 returns the address in the low 48 bits, byte 0 uppermost.
func (m MAC) Uint64() uint64 {
	return uint64(m[0])<<40 | uint64(m[1])<<32 | uint64(m[2])<<24 | uint64(m[3])<<16 | uint64(m[4])<<8 | uint64(m[5])
}

// String returns the address in lower case with colons, as Open vSwitch prints it.
func (m MAC) String() string {
	b, _ := m.AppendText(make([]byte, 0, 17))
	return string(b)
}

// AppendText appends the text of String; the error is always nil.
func (m MAC) AppendText(b []byte) ([]byte, error) {
	for i, v := range m {
		if i > 0 {
			b = append(b, ':')
		}
		b = append(b, hexDigits[v>>4], hexDigits[v&0x0f])
	}
	return b, nil
}

// MarshalText makes a MAC a string in JSON and YAML.
func (m MAC) MarshalText() ([]byte, error) { return m.AppendText(nil) }

// UnmarshalText reads what ParseMAC reads.
func (m *MAC) UnmarshalText(text []byte) error {
	v, err := ParseMAC(string(text))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// unicast tells whether the address can belong to one station: it has no group
// bit and is not all zeros.
func (m MAC) unicast() bool { return m[0]&0x01 == 0 && m != MAC{} }
