package formats

import "strings"

func init() {
	define("waf", "AWS WAF web ACL logs.", shape{
		framing: anyJSON,
		sniff: func(key string, head []byte) bool {
			return strings.Contains(key, "/WAFLogs/") ||
				hasKeys(head, 3, "webaclId", "terminatingRuleId", "terminatingRuleType", "httpSourceName", "httpRequest")
		},
	}, func() WAFConfig { return WAFConfig{} }, openWAF)
}

// WAFConfig configures the format waf. It has no keys.
type WAFConfig struct{}

// The event types of WAF: without auto_event_type all are one.
const (
	wafBase  = "cloud.aws.waf"
	wafTable = wafBase + ".logs"
)

// The slots of the values that are read from a record.
const (
	wafTime = iota
	wafACL
	wafAction
	wafVersion
)

var wafPaths = [...][]string{
	wafTime:    {"timestamp"},
	wafACL:     {"webaclId"},
	wafAction:  {"action"},
	wafVersion: {"formatVersion"},
}

func openWAF(_ WAFConfig, deps Deps) (Format, error) {
	return Format{
		New: func() Decoder {
			w := &waf{objectReader: newObjectReader("WAF record", wafPaths[:]...), types: newTypeNamer(deps.Types, wafBase), actions: newType(isWAFAction)}
			w.versions = newVersion(func(v []byte) bool { return string(v) == "1" })
			return w
		},
		Place: func(key string) (account, region string) { return awsPlace(key, "WAFLogs") },
		Base:  wafBase, Table: wafTable,
	}, nil
}

// waf decodes log records of AWS WAF.
//
//   - id: none. httpRequest.requestId can be chosen by the client, who could hide
//     one request behind another.
//   - time: timestamp, in milliseconds.
//   - type: cloud.aws.waf.<action>: allow, block, count, captcha, challenge.
//   - account, region: those of webaclId, else the key's.
//
// Source: AWS WAF Developer Guide, log fields and log destinations.
type waf struct {
	objectReader

	types   *typeNamer
	actions judge
}

// isWAFAction tells whether an action is known. Source: AWS WAF Developer Guide, log fields.
func isWAFAction(action []byte) bool {
	switch string(action) {
	case "ALLOW", "BLOCK", "COUNT", "CAPTCHA", "CHALLENGE", "EXCLUDED_AS_COUNT":
		return true
	}
	return false
}

// Decode implements Decoder.
func (w *waf) Decode(rec []byte, d *Doc) error {
	if err := w.object(rec, d); err != nil {
		return err
	}
	w.epoch(rec, d, wafTime, digitsBelow[Milliseconds])
	w.arn(rec, d, wafACL)
	var odd Odd
	d.Type, odd = w.types.of(w.scan.textAt(rec, wafAction))
	d.Odd |= odd
	w.version(rec, d, wafVersion)
	w.news, _ = w.actions.meet(w.news, w.scan.textAt(rec, wafAction))
	d.New = w.news
	return nil
}
