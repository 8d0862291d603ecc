package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"go.yaml.in/yaml/v3"

	"github.com/penstock/penstock/services/deliver/sinks"
	"github.com/penstock/penstock/services/ingest/sources"
)

const awsFolder = "../../deploy/aws"

// document is a policy as it stands in a file.
type document struct {
	Version   string
	Statement []struct {
		Sid, Effect string
		Principal   map[string]any
		Action      any
		Resource    any
		Condition   map[string]map[string]any
	}
}

func (d document) actions() []string {
	var all []string
	for _, s := range d.Statement {
		all = append(all, list(s.Action)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func list(v any) []string {
	if s, ok := v.(string); ok {
		return []string{s}
	}
	var all []string
	many, _ := v.([]any)
	for _, one := range many {
		all = append(all, fmt.Sprint(one))
	}
	return all
}

func sorted(in []string) []string {
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}

// keysOnce fails on a key that stands twice in an object, which a map would hide.
func keysOnce(d *json.Decoder) error {
	t, err := d.Token()
	if err != nil {
		return err
	}
	open, nested := t.(json.Delim)
	if !nested {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		if open == '{' {
			key, err := d.Token()
			if err != nil {
				return err
			}
			name, _ := key.(string)
			if seen[name] {
				return fmt.Errorf("%q stands twice", name)
			}
			seen[name] = true
		}
		if err := keysOnce(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

var actionForm = regexp.MustCompile(`^[a-z0-9-]+:[A-Z][A-Za-z]+$`)

// Every policy is legal, and allows the calls of its kind of source, or to_ its kind of
// destination, and no more.
// covers: DEV-39, DEV-40, DEV-41, DEV-42, DEV-43, DEV-44, DEV-45, DEV-46
func TestPolicies(t *testing.T) {
	files, err := filepath.Glob(awsFolder + "/*/*.json")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	kinds := map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var p document
		d := json.NewDecoder(bytes.NewReader(data))
		d.DisallowUnknownFields()
		if err := d.Decode(&p); err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		if _, err := d.Token(); err != io.EOF {
			t.Errorf("%s: something follows: %v", file, err)
		}
		if err := keysOnce(json.NewDecoder(bytes.NewReader(data))); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		trust := filepath.Base(filepath.Dir(file)) == "trust"
		if p.Version != "2012-10-17" || len(p.Statement) == 0 {
			t.Errorf("%s: version %q, %d statements", file, p.Version, len(p.Statement))
		}
		for _, s := range p.Statement {
			actions, resources := list(s.Action), list(s.Resource)
			if s.Effect != "Allow" || s.Sid == "" || len(actions) == 0 || (len(s.Principal) > 0) != trust || (len(resources) == 0) != trust {
				t.Errorf("%s: %+v", file, s)
			}
			for _, a := range actions {
				if !actionForm.MatchString(a) {
					t.Errorf("%s: action %q", file, a)
				}
				for _, r := range resources {
					if r != "*" && !strings.HasPrefix(r, "arn:aws:"+strings.ToLower(a[:strings.IndexByte(a, ':')])+":") && !strings.HasPrefix(a, "sts:") {
						t.Errorf("%s: %s on %s", file, a, r)
					}
					switch {
					case strings.HasPrefix(a, "s3:GetObject") && !strings.HasSuffix(r, "/*"), a == "s3:ListBucket" && strings.Contains(r, "/"):
						t.Errorf("%s: %s on %s", file, a, r)
					case strings.HasPrefix(a, "logs:") && !strings.HasSuffix(r, ":*"):
						t.Errorf("%s: %s on %s", file, a, r)
					case r != "*" && !strings.HasPrefix(a, "s3:") && !strings.HasPrefix(a, "sts:") && strings.Split(r, ":")[3] != "*":
						t.Errorf("%s: %s names a region", file, r)
					}
				}
			}
		}
		if trust {
			continue
		}
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		want, known := sources.Permissions[name]
		if kind, to := strings.CutPrefix(name, "to_"); to {
			want, known = sinks.Permissions[kind]
		}
		switch {
		case known:
			kinds[name] = true
		case name == "sqs_events": // nothing is fetched
			want = slices.DeleteFunc(slices.Clone(sources.Permissions["sqs"]), func(a string) bool { return strings.HasPrefix(a, "s3:") })
		case name == "assume_base_role":
			want = []string{"sts:AssumeRole"}
		default:
			t.Errorf("%s belongs to no kind of source or destination", file)
		}
		if got := p.actions(); !slices.Equal(got, sorted(want)) {
			t.Errorf("%s allows %q, needed are %q", file, got, sorted(want))
		}
	}
	for kind := range sources.Permissions {
		if !kinds[kind] {
			t.Errorf("no policy for %s", kind)
		}
	}
	for kind := range sinks.Permissions {
		if !kinds["to_"+kind] {
			t.Errorf("no policy for destinations of type %s", kind)
		}
	}
}

// The calls that the code makes are those that are asked for: a call that is added
// to a source without a permission is found here.
func TestPermissionsAreThoseOfTheCode(t *testing.T) {
	used := map[string]bool{}
	for _, folder := range []string{"../ingest/sources", "../fetch"} {
		files, err := filepath.Glob(folder + "/*.go")
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// A call of the SDK takes the input of the same name.
			for _, m := range regexp.MustCompile(`\b(sqs|s3|cloudtrail|cloudwatch|cloudwatchlogs|guardduty)\.([A-Z][A-Za-z0-9]+)Input\b`).FindAllStringSubmatch(string(data), -1) {
				service := strings.Replace(m[1], "cloudwatchlogs", "logs", 1)
				call := strings.TrimSuffix(m[2], "Batch")
				if call == "ListObjectsV2" {
					call = "ListBucket"
				}
				used[service+":"+call] = true
			}
		}
	}
	asked := map[string]bool{}
	for _, actions := range sources.Permissions {
		for _, a := range actions {
			asked[a] = true
			if !used[a] && a != "kms:Decrypt" && a != "s3:GetObjectVersion" { // these go with s3:GetObject
				t.Errorf("%s is asked for, and never called", a)
			}
		}
	}
	for a := range used {
		if !asked[a] {
			t.Errorf("%s is called, and no policy is asked to allow it", a)
		}
	}
}

// node is a template with its short forms (!Ref, !Sub, !GetAtt) as they stand.
func refs(n *yaml.Node, found map[string]bool) {
	switch n.Tag {
	case "!Ref":
		found[n.Value] = true
	case "!GetAtt":
		name, _, _ := strings.Cut(n.Value, ".")
		found[name] = true
	case "!Sub":
		for _, m := range regexp.MustCompile(`\$\{([A-Za-z0-9:]+)[^}]*\}`).FindAllStringSubmatch(n.Value, -1) {
			found[m[1]] = true
		}
	case "!If", "!Equals", "!Not", "!Join", "!!map", "!!seq", "!!str", "!!int", "!!bool", "!!null":
		if n.Tag == "!If" && len(n.Content) > 0 {
			found["Conditions."+n.Content[0].Value] = true
		}
	default:
		found["tag "+n.Tag] = true
	}
	for _, c := range n.Content {
		refs(c, found)
	}
}

func find(n *yaml.Node, path ...string) *yaml.Node {
	for _, key := range path {
		next := (*yaml.Node)(nil)
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				next = n.Content[i+1]
			}
		}
		if next == nil {
			return &yaml.Node{}
		}
		n = next
	}
	return n
}

func names(n *yaml.Node) []string {
	var all []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		all = append(all, n.Content[i].Value)
	}
	return all
}

// scalars are all texts at or below a node.
func scalars(n *yaml.Node) []string {
	if n.Kind == yaml.ScalarNode {
		return []string{n.Value}
	}
	var all []string
	for _, c := range n.Content {
		all = append(all, scalars(c)...)
	}
	return all
}

// covers: DEV-47, DEV-48, DEV-49, DEV-53, DEV-54, DEV-55, DEV-57, DEV-58, DEV-60
func TestCloudFormation(t *testing.T) {
	for name, want := range map[string]struct {
		sender    string
		condition []string
		reads     []string
	}{
		"s3-notifications": {"s3.amazonaws.com", []string{"aws:SourceArn", "aws:SourceAccount"}, sources.Permissions["sqs"]},
		"eventbridge":      {"events.amazonaws.com", []string{"aws:SourceArn"}, queueCalls()},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(awsFolder, "cloudformation", name+".yaml"))
			if err != nil {
				t.Fatal(err)
			}
			var doc yaml.Node
			if err := yaml.Unmarshal(data, &doc); err != nil {
				t.Fatal(err)
			}
			root := doc.Content[0]
			known := []string{"AWS::AccountId", "AWS::NoValue", "AWS::Partition", "AWS::Region"}
			known = append(known, names(find(root, "Parameters"))...)
			known = append(known, names(find(root, "Resources"))...)
			for _, c := range names(find(root, "Conditions")) {
				known = append(known, "Conditions."+c)
			}
			found := map[string]bool{}
			refs(root, found)
			for ref := range found {
				if !slices.Contains(known, ref) {
					t.Errorf("%s is not defined", ref)
				}
			}
			for _, unused := range append(names(find(root, "Parameters")), names(find(root, "Conditions"))...) {
				if !found[unused] && !found["Conditions."+unused] && find(root, "Resources", "Bucket", "Condition").Value != unused {
					t.Errorf("%s is not used", unused)
				}
			}
			queue := find(root, "Resources", "Queue", "Properties")
			if find(queue, "RedrivePolicy", "deadLetterTargetArn").Value != "DeadLetters.Arn" || find(queue, "SqsManagedSseEnabled").Value != "true" {
				t.Error("the queue has no dead-letter queue, or is not encrypted")
			}
			policy := find(root, "Resources", "QueuePolicy", "Properties", "PolicyDocument")
			for _, s := range find(policy, "Statement").Content {
				if got := scalars(find(s, "Principal")); !slices.Equal(got, []string{"Service", want.sender}) {
					t.Errorf("principal %q", got)
				}
				if got := scalars(find(s, "Action")); !slices.Equal(got, []string{"sqs:SendMessage"}) {
					t.Errorf("actions %q", got)
				}
				for _, c := range want.condition {
					if !slices.Contains(scalars(find(s, "Condition")), c) {
						t.Errorf("no condition on %s", c)
					}
				}
			}
			var reads []string
			for _, s := range scalars(find(root, "Resources", "ReaderPolicy", "Properties", "PolicyDocument", "Statement")) {
				if actionForm.MatchString(s) {
					reads = append(reads, s)
				}
			}
			if !slices.Equal(sorted(reads), sorted(want.reads)) {
				t.Errorf("the reader may %q, needed are %q", sorted(reads), sorted(want.reads))
			}
		})
	}
}

// queueCalls are those on the queue itself.
func queueCalls() []string {
	return slices.DeleteFunc(slices.Clone(sources.Permissions["sqs"]), func(a string) bool { return !strings.HasPrefix(a, "sqs:") })
}

// covers: DEV-47, DEV-48, DEV-49, DEV-53, DEV-54, DEV-55, DEV-57, DEV-58, DEV-60
func TestTerraform(t *testing.T) {
	for name, want := range map[string]struct {
		sender    string
		condition []string
		reads     []string
	}{
		"s3-notifications": {"s3.amazonaws.com", []string{"aws:SourceAccount", "aws:SourceArn"}, sources.Permissions["sqs"]},
		"eventbridge":      {"events.amazonaws.com", []string{"aws:SourceArn"}, queueCalls()},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(awsFolder, "terraform", name, "main.tf")
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			parsed, problems := hclsyntax.ParseConfig(data, file, hcl.InitialPos)
			if problems.HasErrors() {
				t.Fatal(problems)
			}
			body, _ := parsed.Body.(*hclsyntax.Body)
			defined := map[string]bool{}
			var queue, reader *hclsyntax.Body
			for _, b := range body.Blocks {
				switch b.Type {
				case "variable":
					defined["var."+b.Labels[0]] = true
				case "locals":
					for n := range b.Body.Attributes {
						defined["local."+n] = true
					}
				case "resource":
					defined[b.Labels[0]+"."+b.Labels[1]] = true
				case "data":
					defined["data."+b.Labels[0]+"."+b.Labels[1]] = true
					if b.Labels[0] == "aws_iam_policy_document" && b.Labels[1] == "queue" {
						queue = b.Body
					}
					if b.Labels[0] == "aws_iam_policy_document" && b.Labels[1] == "reader" {
						reader = b.Body
					}
				}
			}
			_ = hclsyntax.VisitAll(body, func(n hclsyntax.Node) hcl.Diagnostics {
				if e, ok := n.(*hclsyntax.ScopeTraversalExpr); ok {
					parts := 2
					if e.Traversal.RootName() == "data" {
						parts = 3
					}
					ref := e.Traversal.RootName()
					for _, step := range e.Traversal[1:min(parts, len(e.Traversal))] {
						if attr, ok := step.(hcl.TraverseAttr); ok {
							ref += "." + attr.Name
						}
					}
					switch ref {
					case "string", "number", "bool", "statement.value", "sqs_target.value": // types, and what a dynamic block stands for
					default:
						if !defined[ref] {
							t.Errorf("%s is not defined, at %s", ref, e.SrcRange)
						}
					}
				}
				return nil
			})
			if queue == nil || reader == nil {
				t.Fatal("a policy is missing")
			}
			if got := texts(queue, "identifiers"); !slices.Equal(got, []string{want.sender}) {
				t.Errorf("principals %q", got)
			}
			if got := texts(queue, "actions"); !slices.Equal(got, []string{"sqs:SendMessage"}) {
				t.Errorf("actions %q", got)
			}
			if got := texts(queue, "variable"); !slices.Equal(sorted(got), want.condition) {
				t.Errorf("conditions on %q", got)
			}
			if got := texts(reader, "actions"); !slices.Equal(sorted(got), sorted(want.reads)) {
				t.Errorf("the reader may %q, needed are %q", sorted(got), sorted(want.reads))
			}
		})
	}
}

// texts are the texts of an attribute, in all blocks.
func texts(body *hclsyntax.Body, name string) []string {
	var all []string
	if a := body.Attributes[name]; a != nil {
		_ = hclsyntax.VisitAll(a.Expr, func(n hclsyntax.Node) hcl.Diagnostics {
			if l, ok := n.(*hclsyntax.LiteralValueExpr); ok {
				all = append(all, l.Val.AsString())
			}
			return nil
		})
	}
	for _, b := range body.Blocks {
		all = append(all, texts(b.Body, name)...)
	}
	return all
}
