// Command gen writes messages/penstock.pb.go from messages/penstock.proto. It
// compiles the file and runs the Go generator of google.golang.org/protobuf in
// this process, so that nothing but Go is needed:
//
//	go generate ./messages
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/bufbuild/protocompile"
	"github.com/bufbuild/protocompile/protoutil"
	"google.golang.org/protobuf/cmd/protoc-gen-go/internal_gengo"
	"google.golang.org/protobuf/compiler/protogen"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// source is the only .proto file, output what is made of it.
const (
	source = "penstock.proto"
	output = "penstock.pb.go"
)

var errOutput = errors.New("the generator made an unexpected set of files")

func main() {
	dir := flag.String("dir", "messages", "folder of "+source)
	flag.Parse()
	if err := write(context.Background(), *dir); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

// write generates the code and stores it beside its source.
func write(ctx context.Context, dir string) error {
	code, err := generate(ctx, dir)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, output), code, 0o644) //nolint:gosec // source code is readable by all
}

// generate returns the Go code of the .proto file in dir.
func generate(ctx context.Context, dir string) ([]byte, error) {
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{ImportPaths: []string{dir}}),
		// The comments of the .proto become the doc comments of the Go code.
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", source, err)
	}
	request := &pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{source},
		Parameter:      proto.String("paths=source_relative"),
		ProtoFile:      []*descriptorpb.FileDescriptorProto{protoutil.ProtoFromFileDescriptor(files[0])},
	}
	plugin, err := protogen.Options{}.New(request)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	for _, f := range plugin.Files {
		if f.Generate {
			internal_gengo.GenerateFile(plugin, f)
		}
	}
	response := plugin.Response()
	if response.Error != nil {
		return nil, fmt.Errorf("generate %s: %s", output, response.GetError())
	}
	if len(response.GetFile()) != 1 || response.GetFile()[0].GetName() != output {
		return nil, errOutput
	}
	return []byte(response.GetFile()[0].GetContent()), nil
}
