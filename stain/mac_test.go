package stain

import (
	"encoding/json"
	"net"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestParseMAC(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text, err string
		want      MAC
	}{
		{text: "52:54:00:ab:CD:ef", want: MAC{0x52, 0x54, 0, 0xab, 0xcd, 0xef}},
		{text: "52-54-00-AB-cd-ef", want: MAC{0x52, 0x54, 0, 0xab, 0xcd, 0xef}},
		{text: "", err: "want 17"},
		{text: "52:54:00:ab:cd", err: "want 17"},
		{text: "52:54:00:ab:cd:ef:01:02", err: "want 17"},
		{text: "52.54.00.ab.cd.ef", err: `'.' between bytes`},
		{text: "52:54:00-ab:cd:ef", err: `'-' before byte 3`},
		{text: "52:54:00:ab:cd:eg", err: `byte 5 is "eg"`},
		{text: "5:54:000:ab:cd:ef", err: `between bytes`},
	}
	for _, tt := range tests {
		got, err := ParseMAC(tt.text)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ParseMAC(%q) = %v, %v; want %v, error with %q", tt.text, got, err, tt.want, tt.err)
		}
	}
}

func TestMACRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := drawMAC(t, "mac")
		if got, err := ParseMAC(m.String()); got != m || err != nil {
			t.Fatalf("ParseMAC(%q) = %v, %v", m.String(), got, err)
		}
		if got := MACFromUint64(m.Uint64() | 0xffff<<48); got != m || m.Uint64()>>48 != 0 {
			t.Fatalf("MACFromUint64(%#x) = %v, want %v", m.Uint64(), got, m)
		}
		text, err := json.Marshal(m)
		var back MAC
		if err == nil {
			err = json.Unmarshal(text, &back)
		}
		if err != nil || back != m {
			t.Fatalf("%v as JSON: %s, %v, %v", m, text, back, err)
		}
	})
	var m MAC
	if err := json.Unmarshal([]byte(`"nonsense"`), &m); err == nil {
		t.Errorf("nonsense is the MAC %v", m)
	}
}

// What we take, package net takes for the same address; and what it takes in
// the form of 17 bytes, we take.
func FuzzParseMAC(f *testing.F) {
	for _, seed := range []string{"52:54:00:ab:CD:ef", "52-54-00-ab-cd-ef", "5254.00ab.cdef", "52:54:00-ab:cd:ef", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := ParseMAC(text)
		want, oracle := net.ParseMAC(text)
		if (err == nil) != (oracle == nil && len(text) == 17 && len(want) == 6) {
			t.Fatalf("ParseMAC(%q): %v, package net: %v", text, err, oracle)
		}
		if err == nil && got.String() != want.String() {
			t.Fatalf("ParseMAC(%q) = %v, package net says %v", text, got, want)
		}
	})
}

func drawMAC(t *rapid.T, label string) MAC {
	return MAC(rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, label))
}
