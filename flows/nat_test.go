package flows

import "testing"

func TestCommitsNAT(t *testing.T) {
	for actions, want := range map[string]bool{
		"ct(commit,zone=NXM_NX_REG13[0..15],nat(src),exec(load:0->NXM_NX_CT_MARK[0])),resubmit(,27)": true, // OVN's ACLs
		"ct(commit,table=13,zone=65520,nat(dst=10.30.0.9:53),exec(load:0x1->NXM_NX_CT_MARK[0..3]))":  true, // Antrea's services
		"ct(commit,zone=NXM_NX_REG6[0..15]),resubmit(,91)":                                           false,
		"ct(table=45,zone=NXM_NX_REG13[0..15],nat)":                                                  false,
		"ct(commit,table=47,zone=NXM_NX_REG13[0..15],nat)":                                           false, // as it was committed
		"output:1": false,
	} {
		if got := CommitsNAT([]Flow{{Actions: "drop"}, {Actions: actions}}); got != want {
			t.Errorf("%s: %v, want %v", actions, got, want)
		}
	}
	ours := Flow{Cookie: Cookie, Actions: "ct(commit,zone=1,nat(src))"}
	if CommitsNAT([]Flow{ours}) {
		t.Error("our own flow counts")
	}
}
