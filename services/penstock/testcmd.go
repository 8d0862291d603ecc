package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/penstock/penstock/services/internal/condition"
	"github.com/penstock/penstock/services/internal/config"
)

// newTest runs the tests of a configuration.
func newTest() *cobra.Command {
	var run testRun
	cmd := &cobra.Command{
		Use: "test FILE...", Args: cobra.ArbitraryArgs, Short: "Run the tests of a configuration: what goes in, and what each destination gets",
		Long: `Takes the inputs of each test through the stages of a configuration, as penstock
run does: the queue reader, fetch, parse, dedupe, the routes, and for each
destination its types, its expression, its masks and the form in which it writes
events. There is no network, no bus and no state: each test is on its own.

A file of tests:

  config: penstock.yaml           # relative to this file
  env: {SIEM_TOKEN: none}         # for ${SIEM_TOKEN} in the configuration
  files:                          # instead of files for enrichment
    /etc/penstock/accounts.csv: accounts.csv
  tests:
    - name: reads are dropped
      input:
        - source: cloudtrail
          record: '{"eventID":"1","eventName":"ListUsers","eventSource":"iam.amazonaws.com"}'
        - source: cloudtrail
          object: {key: AWSLogs/123456789012/CloudTrail/a.json.gz, file: a.json.gz}
        - source: cloudtrail
          message: {file: notification.json}     # the body of a message in the queue
          objects: [{bucket: logs, key: b.json, body: '{"Records":[]}'}]
      expect:
        events: 3                 # that pass dedupe
        duplicates: 0
        dropped: {no-reads: 1}    # by rule
        quarantined: {}           # by code; what is not named must not be there
        destinations:
          archive: 2              # events, or a mapping:
          siem:
            count: 1
            types: {cloud.aws.cloudtrail.iam: 1}
            filtered: 1           # by its expression
            where: ['event.doc.eventName == "CreateUser"']   # of every event
            bodies: ['{"id":"..."}']      # as it writes them
            # bodies_file: siem.txt       # instead; written by --update

Write $${ for ${ in a body. Exit code 1: a test failed; 2: a file is wrong.`,
		Example: `  penstock test penstock.test.yaml
  penstock test --update tests/*.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{fmt.Errorf("name a file of tests; see %s --help", cmd.CommandPath())}
			}
			run.out = cmd.OutOrStdout()
			return run.files(cmd.Context(), args)
		},
	}
	cmd.Flags().BoolVar(&run.update, "update", false, "write the files that bodies_file names")
	cmd.Flags().BoolVar(&run.asJSON, "json", false, "print JSON: what came of each test and what is not as expected")
	return cmd
}

// testRun runs files of tests.
type testRun struct {
	update, asJSON bool
	out            io.Writer
}

// testResult is the result of one test.
type testResult struct {
	File     string        `json:"file"`
	Line     int           `json:"line"`
	Name     string        `json:"name"`
	Passed   bool          `json:"passed"`
	Failures []testFailure `json:"failures,omitempty"`
	Got      *testOutcome  `json:"got,omitempty"`
}

// testFailure is one thing that is not as expected.
type testFailure struct {
	Line int `json:"line"`
	// What is the key of the expectation.
	What     string `json:"what"`
	Expected string `json:"expected"`
	Actual   string `json:"actual"`
}

// files runs each file. All files are read before the first test runs.
func (r *testRun) files(ctx context.Context, names []string) error {
	var problems []error
	var tests []testFile
	var files []File
	for _, name := range names {
		t, file, err := loadTests(name)
		problems = append(problems, err)
		tests, files = append(tests, t), append(files, file)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	var results []testResult
	failed := 0
	for i := range tests {
		for k := range tests[i].Tests {
			result, err := r.one(ctx, &tests[i], &files[i], &tests[i].Tests[k])
			if err != nil { // nothing runs outside this process, so a file is wrong
				return usageError{fmt.Errorf("%s: test %q: %w", tests[i].path, tests[i].Tests[k].Name, err)}
			}
			if !result.Passed {
				failed++
			}
			results = append(results, result)
			if !r.asJSON {
				r.print(&result)
			}
		}
	}
	if r.asJSON {
		if err := writeJSON(r.out, results); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(r.out, "%d passed, %d failed\n", len(results)-failed, failed)
	}
	if failed > 0 {
		return errSilent
	}
	return nil
}

// one runs one test.
func (r *testRun) one(ctx context.Context, t *testFile, file *File, c *testCase) (testResult, error) {
	result := testResult{File: t.path, Line: c.node.Line(), Name: c.Name}
	got, err := runTest(ctx, t, file, c)
	if err != nil {
		return result, err
	}
	x := comparison{expect: &c.Expect, got: got, line: c.node.Line()}
	if err := x.compare(t, r.update); err != nil {
		return result, err
	}
	slices.SortStableFunc(x.failures, func(a, b testFailure) int { return a.Line - b.Line })
	result.Failures, result.Passed, result.Got = x.failures, len(x.failures) == 0, got
	return result, nil
}

func (r *testRun) print(result *testResult) {
	if result.Passed {
		fmt.Fprintf(r.out, "ok    %s\n", result.Name)
		return
	}
	fmt.Fprintf(r.out, "FAIL  %s\n", result.Name)
	for _, f := range result.Failures {
		fmt.Fprintf(r.out, "  %s:%d: %s\n    expected %s\n    actual   %s\n", result.File, f.Line, f.What, indented(f.Expected), indented(f.Actual))
	}
	fmt.Fprintf(r.out, "  what came: %s\n", result.Got)
	for _, q := range result.Got.Quarantined {
		fmt.Fprintf(r.out, "    %s: %s\n", q.Stage, q.Reason)
	}
}

func indented(s string) string {
	return strings.ReplaceAll(printable(s), "\n", "\n             ")
}

// String is the outcome on a line.
func (o *testOutcome) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d events, %d duplicates", o.Events, o.Duplicates)
	for _, rule := range slices.Sorted(maps.Keys(o.Dropped)) {
		fmt.Fprintf(&b, ", %d dropped by %s", o.Dropped[rule], rule)
	}
	codes := o.codes()
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		fmt.Fprintf(&b, ", %d in quarantine with %s", codes[code], code)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Destinations)) {
		fmt.Fprintf(&b, ", %d to %s", len(o.Destinations[name].Events), name)
	}
	return b.String()
}

// codes counts what went to quarantine.
func (o *testOutcome) codes() map[string]int {
	codes := map[string]int{}
	for _, q := range o.Quarantined {
		codes[q.Code] += q.count
	}
	return codes
}

// comparison holds an outcome against what is expected.
type comparison struct {
	expect   *expectation
	got      *testOutcome
	line     int // of the test, for what no line stands for
	failures []testFailure
}

// fail notes that something is not as expected. at is where the expectation is written.
func (x *comparison) fail(at *config.Node, what, expected, actual string) {
	line := x.line
	if at != nil {
		line = at.Line()
	}
	x.failures = append(x.failures, testFailure{line, what, expected, actual})
}

func (x *comparison) count(at *config.Node, what string, want *int, got int) {
	if want != nil && *want != got {
		x.fail(at, what, strconv.Itoa(*want), strconv.Itoa(got))
	}
}

func (x *comparison) compare(t *testFile, update bool) error {
	e, n := x.expect, x.expect.node
	x.count(n.Get("events"), "events", e.Events, x.got.Events)
	x.count(n.Get("duplicates"), "duplicates", e.Duplicates, x.got.Duplicates)
	for _, rule := range slices.Sorted(maps.Keys(e.Dropped)) {
		want := e.Dropped[rule]
		x.count(n.Get("dropped").Get(rule), "dropped."+rule, &want, x.got.Dropped[rule])
	}
	codes := x.got.codes()
	for _, code := range slices.Sorted(maps.Keys(e.Quarantined)) {
		want := e.Quarantined[code]
		x.count(n.Get("quarantined").Get(code), "quarantined."+code, &want, codes[code])
		delete(codes, code)
	}
	for _, code := range slices.Sorted(maps.Keys(codes)) {
		x.fail(n.Get("quarantined"), "quarantined."+code, "0", strconv.Itoa(codes[code]))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Destinations)) {
		if err := x.destination(t, update, "destinations."+name, e.Destinations[name], x.got.Destinations[name]); err != nil {
			return err
		}
	}
	return nil
}

func (x *comparison) destination(t *testFile, update bool, what string, want *expectDestination, got *testDeliveries) error {
	n := want.node
	at := n.Get("count")
	if at == nil {
		at = n // written as a number alone
	}
	x.count(at, what+".count", want.Count, len(got.Events))
	x.count(n.Get("filtered"), what+".filtered", want.Filtered, got.Filtered)
	if want.Types != nil {
		types := map[string]int{}
		for _, e := range got.Events {
			types[e.Type]++
		}
		if !maps.Equal(types, want.Types) {
			x.fail(n.Get("types"), what+".types", counted(want.Types), counted(types))
		}
	}
	for i, expression := range want.Where {
		x.holds(n.Get("where").Items()[i], fmt.Sprintf("%s.where[%d]", what, i), expression, got)
	}
	if want.Bodies == nil && want.BodiesFile == "" {
		return nil
	}
	if got.Unopened != "" {
		x.fail(n, what, "events as the destination writes them", "it cannot be opened here: "+got.Unopened)
		return nil
	}
	for i := range max(len(want.Bodies), len(got.Events)) {
		if want.Bodies == nil {
			break
		}
		expected, actual, at := "(none)", "(none)", n.Get("bodies")
		if i < len(want.Bodies) {
			expected, at = strings.TrimSuffix(want.Bodies[i], "\n"), at.Items()[i]
		}
		if i < len(got.Events) {
			actual = strings.TrimSuffix(got.Events[i].Body, "\n")
		}
		if expected != actual {
			x.fail(at, fmt.Sprintf("%s.bodies[%d]", what, i), expected, actual)
		}
	}
	if want.BodiesFile == "" {
		return nil
	}
	return x.bodiesFile(t, update, what, want, got)
}

// bodiesFile compares the bodies with a file, or writes it.
func (x *comparison) bodiesFile(t *testFile, update bool, what string, want *expectDestination, got *testDeliveries) error {
	var all strings.Builder
	for _, e := range got.Events {
		all.WriteString(e.Body)
	}
	name := t.relative(want.BodiesFile)
	if update {
		if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
			return err
		}
		return os.WriteFile(name, []byte(all.String()), 0o600)
	}
	at := want.node.Get("bodies_file")
	expected, err := os.ReadFile(name)
	if err != nil {
		x.fail(at, what+".bodies_file", "the file "+want.BodiesFile, err.Error()+"; write it with: penstock test --update "+t.path)
		return nil //nolint:nilerr // the test fails by it, the command does not
	}
	if string(expected) != all.String() {
		a, b := strings.SplitAfter(string(expected), "\n"), strings.SplitAfter(all.String(), "\n")
		line := 0
		for line < min(len(a), len(b))-1 && a[line] == b[line] {
			line++
		}
		x.fail(at, fmt.Sprintf("%s.bodies_file, line %d of %s", what, line+1, want.BodiesFile), strings.TrimSuffix(a[line], "\n"), strings.TrimSuffix(b[line], "\n"))
	}
	return nil
}

// holds checks that an expression holds for every event. One over no events at all
// says nothing, which is hardly what was meant.
func (x *comparison) holds(at *config.Node, what, expression string, got *testDeliveries) {
	c, err := condition.Compile(expression)
	if err != nil {
		x.fail(at, what, expression, err.Error()) // not reached: validated
		return
	}
	if len(got.Events) == 0 {
		x.fail(at, what, expression, "there is no event for which it could hold")
	}
	for _, e := range got.Events {
		if ok, err := c.Match(&e.event); err != nil {
			x.fail(at, what, expression, err.Error()+"\n"+string(e.event.Doc))
			return
		} else if !ok {
			x.fail(at, what, expression, "it does not hold for\n"+string(e.event.Doc))
			return
		}
	}
}

// counted is counts in a sentence.
func counted(counts map[string]int) string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		all = append(all, fmt.Sprintf("%d %s", counts[name], name))
	}
	if all == nil {
		return "none"
	}
	return listed(all)
}
