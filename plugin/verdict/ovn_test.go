package verdict

import (
	"strings"
	"testing"

	dyetracev1 "github.com/dyetrace/dyetrace/api/dyetrace/v1"
)

const (
	ovnOwner  = dyetracev1.FlowOwner_FLOW_OWNER_OVN
	ovnDrop   = "drop"
	ovnLogged = "controller(userdata=00.00.00.07.00.00.00.00.01.06.64.72.6f.70)"
)

// TestPolicyOfOVN tells what an ACL of OVN's denies from what else its flows drop, with the southbound
// database and without.
func TestPolicyOfOVN(t *testing.T) {
	flow := func(actions string, acl *dyetracev1.AccessList) *Flow {
		return &Flow{Bridge: "br-int", Table: 46, Priority: 3000, Match: "ip,reg0=0x200/0x200,reg15=0x68,metadata=0x3e9",
			Actions: actions, Cookie: 0xe7286d44, Owner: ovnOwner, ACL: acl}
	}
	acl := &dyetracev1.AccessList{Hint: "3f1e3cda", Direction: "to-lport"}
	for _, tt := range []struct {
		name string
		f    *Flow
		want bool
	}{
		{"ACL", flow(ovnDrop, acl), true},
		{"logged, not named", flow(ovnLogged, nil), true},
		{"logged reject, not named", flow(strings.Replace(ovnLogged, "00.00.01.06", "00.00.02.06", 1), nil), true},
		{"logged allow, not named", flow(strings.Replace(ovnLogged, "00.00.01.06", "00.00.00.06", 1), nil), false},
		{"not named", flow(ovnDrop, nil), false},
		{"asks by ARP", flow("controller(userdata=00.00.00.00.00.00.00.00.00.19)", nil), false},
		// Numbers of Neutron's tables mean nothing in OVN.
		{"table 72", &Flow{Bridge: "br-int", Table: 72, Actions: ovnDrop, Owner: ovnOwner, Match: "ip"}, false},
		{"another bridge", &Flow{Bridge: "br-ex", Actions: ovnDrop, Owner: ovnOwner, ACL: acl}, false},
	} {
		if got := Policy(tt.f, "br-int"); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestFlowOfOVN says what OVN has a flow for, as far as that is known.
func TestFlowOfOVN(t *testing.T) {
	f := Flow{Bridge: "br-int", Table: 46, Priority: 3000, Match: "ip", Cookie: 0xe7286d44, Owner: ovnOwner}
	want := func(words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(f.String(), w) {
				t.Errorf("%s (want %q)", &f, w)
			}
		}
	}
	want("br-int table 46, priority 3000, ip", "OVN's, cookie 0xe7286d44")
	f.Stage, f.Logical = "ls_out_acl", &dyetracev1.LogicalFlow{Datapath: "front", Match: `outport == "p" && ip`}
	want("cookie 0xe7286d44", "OVN's ls_out_acl of front", `outport == "p" && ip`)
	f.ACL = &dyetracev1.AccessList{Hint: "3f1e3cda", Name: "quarantine", Direction: "to-lport"}
	want(`ACL "quarantine" 3f1e3cda, to-lport`)
}
