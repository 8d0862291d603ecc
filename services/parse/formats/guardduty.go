package formats

import (
	"bytes"
	"strings"

	"github.com/penstock/penstock/services/internal/framing"
)

func init() {
	define("guardduty", "AWS GuardDuty findings: exported, of the API, or in EventBridge events.", shape{
		framing: guardDutyFraming,
		sniff: func(key string, head []byte) bool {
			if strings.Contains(key, "/GuardDuty/") {
				return true
			}
			if e := envelopeOf(head); e.is {
				return e.source == sourceGuardDuty
			}
			rec, _ := guardDutyFirst(head)
			return isGuardDuty(rec)
		},
	}, func() GuardDutyConfig { return GuardDutyConfig{} }, openGuardDuty)
}

// GuardDutyConfig configures the format guardduty. It has no keys.
type GuardDutyConfig struct{}

// The event type of GuardDuty's findings. Source: features DEV-22.
const (
	guardDutyBase  = "cloud.aws.guardduty"
	guardDutyTable = guardDutyBase + ".findings"
)

// guardDutyFraming knows, beside a finding a line, the answer of GetFindings.
func guardDutyFraming(head []byte) framing.Framing {
	if _, key := guardDutyFirst(head); key != "" {
		return framing.Framing{Kind: framing.Array, Key: key}
	}
	return framing.Framing{Kind: framing.Auto}
}

// guardDutyFirst returns where the first finding begins, and the key of the array
// that it is in.
func guardDutyFirst(head []byte) (rec []byte, under string) {
	rec = firstRecord(head)
	peek(rec, func(key string, rest []byte) bool {
		if (key == "findings" || key == "Findings") && len(rest) > 0 && rest[0] == '[' {
			rec, under = rest[1:], strings.Clone(key)
		}
		return false
	})
	return rec, under
}

// isGuardDuty goes by the ARN of the finding, which no other has.
func isGuardDuty(rec []byte) bool {
	found := false
	peek(rec, func(key string, rest []byte) bool {
		if key == "arn" || key == "Arn" {
			rest = rest[:min(len(rest), 40)]
			found = bytes.HasPrefix(rest, []byte(`"arn:`)) && bytes.Contains(rest, []byte(":guardduty:"))
		}
		return !found
	})
	return found
}

// The slots of the values that are read from a finding.
const (
	gdID = iota
	gdUpdated
	gdAccount
	gdRegion
	gdVersion
	gdType
	gdSlots
)

// guardDutyPlaces are where a finding stands: by itself, in an envelope, and with
// the names of the SDK and of the command line.
const (
	gdBare     = 0
	gdEnvelope = gdBare + gdSlots
	gdSDK      = gdEnvelope + gdSlots
	gdTime     = gdSDK + gdSlots // of the envelope
)

func openGuardDuty(_ GuardDutyConfig, _ Deps) (Format, error) {
	paths := [][]string{
		gdBare + gdID:          {"id"},
		gdBare + gdUpdated:     {"updatedAt"},
		gdBare + gdAccount:     {"accountId"},
		gdBare + gdRegion:      {"region"},
		gdBare + gdVersion:     {"schemaVersion"},
		gdBare + gdType:        {"type"},
		gdEnvelope + gdID:      {"detail", "id"},
		gdEnvelope + gdUpdated: {"detail", "updatedAt"},
		gdEnvelope + gdAccount: {"detail", "accountId"},
		gdEnvelope + gdRegion:  {"detail", "region"},
		gdEnvelope + gdVersion: {"detail", "schemaVersion"},
		gdEnvelope + gdType:    {"detail", "type"},
		gdSDK + gdID:           {"Id"},
		gdSDK + gdUpdated:      {"UpdatedAt"},
		gdSDK + gdAccount:      {"AccountId"},
		gdSDK + gdRegion:       {"Region"},
		gdSDK + gdVersion:      {"SchemaVersion"},
		gdSDK + gdType:         {"Type"},
		gdTime:                 {"time"},
	}
	return Format{
		New: func() Decoder {
			g := &guardDuty{objectReader: newObjectReader("GuardDuty finding", paths...)}
			g.versions = newVersion(func(v []byte) bool { return bytes.HasPrefix(v, []byte("2.")) })
			g.purposes = newType(func(p []byte) bool { return guardDutyPurposes[string(p)] })
			return g
		},
		Place: func(key string) (account, region string) { return awsPlace(key, "GuardDuty") },
		Base:  guardDutyBase, Table: guardDutyTable,
	}, nil
}

// guardDuty decodes findings of GuardDuty. However one arrives, it is the same
// event; its type is cloud.aws.guardduty.findings.
//
//   - id: id and updatedAt: the id stays while new occurrences are counted.
//   - time: updatedAt.
//   - account, region: of the finding, else the key's.
//
// Source: formats F-13, F-14, F-15; Amazon GuardDuty API Reference, Finding.
type guardDuty struct {
	objectReader

	purposes judge
}

// guardDutyPurposes are what findings are about: what comes before the colon of their
// types. Source: Amazon GuardDuty User Guide, GuardDuty finding format.
var guardDutyPurposes = setOf("AttackSequence Backdoor Behavior CredentialAccess Cryptocurrency CryptoCurrency DefenseEvasion Discovery Execution " +
	"Exfiltration Impact InitialAccess Object PenTest Persistence Policy PrivilegeEscalation Recon ResourceConsumption Stealth Trojan " +
	"UnauthorizedAccess")

// kindGuardDuty begins the ids of findings.
var kindGuardDuty = []byte("guardduty")

// Decode implements Decoder.
func (g *guardDuty) Decode(rec []byte, d *Doc) error {
	if err := g.object(rec, d); err != nil {
		return err
	}
	d.Type = guardDutyTable
	at := gdBare
	switch { // the envelope has an id of its own
	case g.has(gdEnvelope+gdID) && g.has(gdEnvelope+gdUpdated):
		at = gdEnvelope
	case g.has(gdSDK+gdID) && !g.has(gdBare+gdID):
		at = gdSDK
	}
	if at == gdBare && g.has(gdTime) && !g.has(gdBare+gdUpdated) { // an envelope of something else
		g.identify(rec, d, kindEventBridge, gdBare+gdID)
	} else {
		g.identify(rec, d, kindGuardDuty, at+gdID, at+gdUpdated)
	}
	updated := at + gdUpdated
	if g.scan.found[updated].kind == absent && g.has(gdTime) {
		updated = gdTime
	}
	g.time(rec, d, updated)
	d.Account, d.Region = g.account(rec, at+gdAccount), g.region(rec, at+gdRegion)
	g.version(rec, d, at+gdVersion)
	purpose, _, _ := bytes.Cut(g.scan.textAt(rec, at+gdType), []byte(":"))
	g.news, _ = g.purposes.meet(g.news, purpose)
	d.New = g.news
	return nil
}
