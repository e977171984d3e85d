package build

import (
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// The message istio.networking.nds.v1.NameTable has no generated code in any
// public module, so it is described here: for Build, which is for tests and
// debug output, by a descriptor, and for Encode by its field numbers.
const (
	nameTableTable    = 1 // NameTable, a map from host name to NameInfo
	nameInfoIPs       = 1 // NameInfo
	nameInfoRegistry  = 2
	nameInfoShort     = 3
	nameInfoNamespace = 4
)

// encode appends the record as one entry of a table.
func (r *nameRecord) encode(dst []byte) []byte {
	dst, entry := open(dst, nameTableTable)
	dst = append(appendHeader(dst, mapKey, len(r.host)), r.host...) // a key is there even if it is empty
	dst, info := open(dst, mapValue)
	for _, a := range r.addrs {
		dst = append(dst, nameInfoIPs<<3|bytesType, 0)
		start := len(dst)
		dst = dialled(a).AppendTo(dst)
		dst[start-1] = byte(len(dst) - start) // an IP's text is at most 45 bytes
	}
	registry := registryOf(r.service)
	dst = appendText(dst, nameInfoRegistry, registry)
	if registry == registryKubernetes {
		dst = appendText(dst, nameInfoShort, r.short)
		dst = appendText(dst, nameInfoNamespace, r.namespace)
	}
	return shut(shut(dst, info), entry)
}

// nameTableMessage makes the message that the encoded records stand for.
func nameTableMessage(records []*nameRecord) proto.Message {
	nameTable := describeNameTable()
	table := dynamicpb.NewMessage(nameTable.Messages().ByName("NameTable"))
	entries := nameTable.Messages().ByName("NameTable").Fields().ByNumber(nameTableTable)
	info := nameTable.Messages().ByName("NameInfo")
	all := table.Mutable(entries).Map()
	for _, r := range records {
		m := dynamicpb.NewMessage(info)
		ips := m.Mutable(info.Fields().ByNumber(nameInfoIPs)).List()
		for _, a := range r.addrs {
			ips.Append(protoreflect.ValueOfString(dialled(a).String()))
		}
		set := func(n protowire.Number, s string) {
			m.Set(info.Fields().ByNumber(n), protoreflect.ValueOfString(s))
		}
		registry := registryOf(r.service)
		set(nameInfoRegistry, registry)
		if registry == registryKubernetes {
			set(nameInfoShort, r.short)
			set(nameInfoNamespace, r.namespace)
		}
		all.Set(protoreflect.ValueOfString(r.host).MapKey(), protoreflect.ValueOfMessage(m))
	}
	return table
}

// describeNameTable describes the messages. The descriptor is not registered
// with anybody; messages of two descriptors are never equal to [proto.Equal],
// but have equal bytes.
func describeNameTable() protoreflect.FileDescriptor {
	text := func(name, json string, n int32, label descriptorpb.FieldDescriptorProto_Label) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, JsonName: &json, Number: &n, Label: &label,
			Type: descriptorpb.FieldDescriptorProto_TYPE_STRING.Enum()}
	}
	message := func(name string, n int32, typ string, label descriptorpb.FieldDescriptorProto_Label) *descriptorpb.FieldDescriptorProto {
		return &descriptorpb.FieldDescriptorProto{Name: &name, JsonName: &name, Number: &n, Label: &label, TypeName: &typ,
			Type: descriptorpb.FieldDescriptorProto_TYPE_MESSAGE.Enum()}
	}
	const one, many = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL, descriptorpb.FieldDescriptorProto_LABEL_REPEATED
	const pkg = "istio.networking.nds.v1"
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String("isthmus/nametable.proto"), Package: proto.String(pkg), Syntax: proto.String("proto3"),
		MessageType: []*descriptorpb.DescriptorProto{
			{Name: proto.String("NameTable"),
				Field: []*descriptorpb.FieldDescriptorProto{message("table", nameTableTable, "."+pkg+".NameTable.TableEntry", many)},
				NestedType: []*descriptorpb.DescriptorProto{{Name: proto.String("TableEntry"), Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)},
					Field: []*descriptorpb.FieldDescriptorProto{text("key", "key", mapKey, one), message("value", mapValue, "."+pkg+".NameInfo", one)}}}},
			{Name: proto.String("NameInfo"), Field: []*descriptorpb.FieldDescriptorProto{
				text("ips", "ips", nameInfoIPs, many), text("registry", "registry", nameInfoRegistry, one),
				text("shortname", "shortname", nameInfoShort, one), text("namespace", "namespace", nameInfoNamespace, one)}},
		},
	}
	d, err := protodesc.NewFile(file, nil)
	if err != nil {
		panic("describe name table: " + err.Error()) // a constant: cannot happen
	}
	return d
}
