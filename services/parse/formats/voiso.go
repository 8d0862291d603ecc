package formats

import (
	"slices"

	"github.com/penstock/penstock/services/internal/config"
)

func init() {
	define("voiso", "Voiso security events.", shape{
		framing: anyJSON,
		sniff:   func(_ string, head []byte) bool { return hasKeys(head, 3, "callcenter", "params", "event") },
	}, func() VoisoConfig { return VoisoConfig{} }, openVoiso)
}

// VoisoConfig configures the format voiso.
type VoisoConfig struct {
	// SeverityField is the name of a key to add to each document, with the severity
	// of the event: info, low, medium or high. Empty: documents stay as they came.
	SeverityField string `yaml:"severity_field"`
	// Severities are other severities than the built-in ones, by type and event,
	// e.g. app_login.ip_changed: high; unknown is for all other events.
	Severities map[string]Severity `yaml:"severities"`
}

// Severity says how much an event matters.
type Severity string

// The severities.
const (
	Info   Severity = "info"
	Low    Severity = "low"
	Medium Severity = "medium"
	High   Severity = "high"
)

// Values implements config.Enum.
func (Severity) Values() []string {
	return []string{string(Info), string(Low), string(Medium), string(High)}
}

const (
	voisoBase    = "voiso"
	voisoUnknown = voisoBase + ".unknown"
	// voisoOther is the key of Severities for unknown events.
	voisoOther = "unknown"
)

// The slots of the values that are read from an event; those of the parameters are
// last.
const (
	voTime = iota
	voType
	voEvent
	voTenant
	voSeverity
	voParams
)

// voisoParams are the parameters that events have, in the order of their slots.
var voisoParams = []string{"user", "access_group", "count", "ip", "from", "to", "who"}

// voisoKind is a pair of type and event: its event type, its severity and the
// parameters it has, a bit each.
type voisoKind struct {
	name     string
	severity Severity
	params   uint8
}

func voisoKindOf(pair string, severity Severity, params ...string) voisoKind {
	k := voisoKind{name: voisoBase + "." + pair, severity: severity}
	for _, p := range params {
		k.params |= 1 << slices.Index(voisoParams, p)
	}
	return k
}

// voisoKinds are all pairs that there are. One event name can stand under two types
// and mean two things, so the pair counts. Source: features VOI-9 to VOI-26, VOI-32.
var voisoKinds = func() map[string]voisoKind {
	kinds := map[string]voisoKind{}
	for _, k := range []voisoKind{
		voisoKindOf("app_login.incorrect_password", Medium, "user", "access_group", "count"),
		voisoKindOf("app_login.deleted_user", High, "user", "access_group"),
		voisoKindOf("app_login.successful_login", Info, "user", "access_group"),
		voisoKindOf("app_login.unauthorized_ip", High, "user", "access_group", "ip"),
		voisoKindOf("app_login.ip_changed", Low, "user", "access_group", "from", "to"),
		voisoKindOf("user.user_added", Low, "who", "user", "access_group"),
		voisoKindOf("user.user_deleted", Low, "who", "user", "access_group"),
		voisoKindOf("user.password_changed", Low, "who", "user", "access_group"),
		voisoKindOf("user.privileges_updated", High, "who", "user", "from", "to"),
		voisoKindOf("allowed_ip.ip_added", High, "who", "access_group", "ip"),
		voisoKindOf("allowed_ip.ip_removed", High, "who", "access_group", "ip"),
		voisoKindOf("allowed_ip.ip_changed", High, "who", "access_group", "from", "to"),
	} {
		kinds[k.name[len(voisoBase)+1:]] = k
	}
	return kinds
}()

// Validate reports every problem, each with the key to change.
func (c VoisoConfig) Validate() error {
	var p config.Problems
	for pair := range c.Severities {
		_, known := voisoKinds[pair]
		p.Need(known || pair == voisoOther, "severities."+pair, "use a type and an event of Voiso, e.g. app_login.ip_changed, or unknown")
	}
	p.Need(len(c.Severities) == 0 || c.SeverityField != "", "severity_field", "name the key that gets the severity, e.g. severity")
	p.Need(len(c.SeverityField) <= maxNameSize, "severity_field", "use at most 128 bytes")
	return p.Err()
}

func openVoiso(c VoisoConfig, _ Deps) (Format, error) {
	paths := [][]string{
		voTime:     {"timestamp"},
		voType:     {"type"},
		voEvent:    {"event"},
		voTenant:   {"callcenter"},
		voSeverity: nil,
	}
	f := Format{Base: voisoBase}
	var key fieldKey
	if c.SeverityField != "" {
		paths[voSeverity] = []string{c.SeverityField}
		key = newKey(c.SeverityField)
		f.Grows = 1
	}
	for _, name := range voisoParams {
		paths = append(paths, []string{"params", name})
	}
	severities := map[string]Severity{voisoUnknown: Low}
	for pair, k := range voisoKinds {
		severities[k.name] = k.severity
		if s, ok := c.Severities[pair]; ok {
			severities[k.name] = s
		}
	}
	if s, ok := c.Severities[voisoOther]; ok {
		severities[voisoUnknown] = s
	}
	f.New = func() Decoder {
		return &voiso{objectReader: newObjectReader("Voiso event", paths...), key: key, severities: severities}
	}
	return f, nil
}

// voiso decodes security events of Voiso.
//
//   - id: none; the message's content within the window for bodies makes it.
//   - time: timestamp.
//   - type: voiso.<type>.<event>; pairs that are not known are voiso.unknown.
//   - account: callcenter, the tenant. There is no region.
//
// A known pair whose parameters are not all there, as texts, is odd (bad_shape).
//
// Source: formats F-1; features VOI-5 to VOI-32.
type voiso struct {
	objectReader

	key        fieldKey // of the severity, nil for none
	severities map[string]Severity
	pair, made []byte
}

// Decode implements Decoder.
func (v *voiso) Decode(rec []byte, d *Doc) error {
	if err := v.object(rec, d); err != nil {
		return err
	}
	v.time(rec, d, voTime)
	d.Account = v.accounts.of(v.scan.textAt(rec, voTenant))
	v.pair = append(append(v.pair[:0], v.scan.textAt(rec, voType)...), '.')
	v.pair = append(v.pair, v.scan.textAt(rec, voEvent)...)
	kind, known := voisoKinds[string(v.pair)]
	d.Type = kind.name
	switch {
	case !known:
		d.Type = voisoUnknown
		d.Odd |= NoType
	case !v.complete(kind.params):
		d.Odd |= BadShape
	}
	if v.key != nil && v.scan.found[voSeverity].kind == absent {
		v.made = append(v.made[:0], d.Body[:len(d.Body)-1]...)
		if len(trimSpace(d.Body[1:])) > 1 {
			v.made = append(v.made, ',')
		}
		v.made = append(append(append(v.made, v.key...), v.severities[d.Type]...), '"', '}')
		d.Body, d.Offset, d.Made = v.made, 0, true
	}
	return nil
}

// complete tells whether each of params is there as a text.
func (v *voiso) complete(params uint8) bool {
	for i := range voisoParams {
		if params&(1<<i) != 0 && v.scan.found[voParams+i].kind != text {
			return false
		}
	}
	return true
}
