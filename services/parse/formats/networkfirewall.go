package formats

import "strings"

func init() {
	define("networkfirewall", "AWS Network Firewall alert, flow and TLS logs.", shape{
		framing: anyJSON,
		sniff: func(key string, head []byte) bool {
			return strings.Contains(key, networkFirewallFolder) || hasKeys(head, 3, "firewall_name", "event_timestamp", "event", "availability_zone")
		},
	}, func() NetworkFirewallConfig { return NetworkFirewallConfig{} }, openNetworkFirewall)
}

// NetworkFirewallConfig configures the format networkfirewall. It has no keys.
type NetworkFirewallConfig struct{}

// The event types of Network Firewall: without auto_event_type all are one.
const (
	networkFirewallBase   = "cloud.aws.networkfirewall"
	networkFirewallTable  = networkFirewallBase + ".logs"
	networkFirewallFolder = "/network-firewall/"
)

// The slots of the values that are read from a record.
const (
	nfTime = iota
	nfSeconds
	nfType
)

var networkFirewallPaths = [...][]string{
	nfTime:    {"event", "timestamp"},
	nfSeconds: {"event_timestamp"},
	nfType:    {"event", "event_type"},
}

func openNetworkFirewall(_ NetworkFirewallConfig, deps Deps) (Format, error) {
	return Format{
		New: func() Decoder {
			return &networkFirewall{
				objectReader: newObjectReader("firewall log record", networkFirewallPaths[:]...),
				types:        newTypeNamer(deps.Types, networkFirewallBase), kinds: newType(isFirewallKind),
			}
		},
		Place: networkFirewallPlace,
		Base:  networkFirewallBase, Table: networkFirewallTable,
	}, nil
}

// networkFirewallPlace reads account and region off
// [prefix/]AWSLogs/<account>/network-firewall/<log type>/<region>/...
func networkFirewallPlace(key string) (account, region string) {
	before, after, ok := strings.Cut(key, networkFirewallFolder)
	if !ok {
		return "", ""
	}
	if account = before[strings.LastIndexByte(before, '/')+1:]; !isAccount(account) {
		return "", ""
	}
	_, after, _ = strings.Cut(after, "/")
	if region, _, ok = strings.Cut(after, "/"); !ok || !isRegion(region) {
		return account, ""
	}
	return account, region
}

// networkFirewall decodes log records of AWS Network Firewall.
//
//   - id: none.
//   - time: event.timestamp, else event_timestamp in seconds.
//   - type: cloud.aws.networkfirewall.<event.event_type>: alert, netflow, tls.
//   - account, region: the key's.
//
// Source: AWS Network Firewall Developer Guide, contents of a firewall log.
type networkFirewall struct {
	objectReader

	types *typeNamer
	kinds judge
}

// isFirewallKind tells whether an event_type is known.
// Source: AWS Network Firewall Developer Guide, contents of a firewall log.
func isFirewallKind(kind []byte) bool {
	switch string(kind) {
	case "alert", "netflow", "flow", "tls":
		return true
	}
	return false
}

// Decode implements Decoder.
func (n *networkFirewall) Decode(rec []byte, d *Doc) error {
	if err := n.object(rec, d); err != nil {
		return err
	}
	if n.has(nfTime) {
		n.time(rec, d, nfTime)
	} else {
		n.epoch(rec, d, nfSeconds, digitsBelow[Seconds])
	}
	var odd Odd
	d.Type, odd = n.types.of(n.scan.textAt(rec, nfType))
	d.Odd |= odd
	n.news, _ = n.kinds.meet(n.news[:0], n.scan.textAt(rec, nfType))
	d.New = n.news
	return nil
}
