package serve

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// findConfigMap looks for a ConfigMap in a folder of YAML. Files that are no
// YAML are the business of whoever reads the cluster from the folder: here they
// hold no ConfigMap.
func findConfigMap(folder, namespace, name string) (data map[string]string, there bool, err error) {
	err = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasPrefix(d.Name(), ".") && path != folder && d.IsDir():
			return fs.SkipDir
		case d.IsDir() || strings.HasPrefix(d.Name(), "."):
			return nil
		}
		if ext := strings.ToLower(filepath.Ext(path)); ext != ".yaml" && ext != ".yml" {
			return nil
		}
		text, err := readBounded(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !bytes.Contains(text, []byte(name)) {
			return nil
		} else if err != nil {
			return err
		}
		if data, there = configMapIn(text, namespace, name); there {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return nil, false, fmt.Errorf("look for ConfigMap %s: %w", name, err)
	}
	return data, there, nil
}

// configMapIn looks through the documents of a file.
func configMapIn(text []byte, namespace, name string) (map[string]string, bool) {
	for _, doc := range bytes.Split(append([]byte("\n"), text...), []byte("\n---")) {
		var cm corev1.ConfigMap
		// What follows the separator in its line is a comment, if anything.
		if at := bytes.IndexByte(doc, '\n'); at >= 0 {
			doc = doc[at:]
		}
		if yaml.Unmarshal(doc, &cm) == nil && cm.Kind == "ConfigMap" && cm.Name == name && (cm.Namespace == namespace || cm.Namespace == "") {
			return cm.Data, true
		}
	}
	return nil, false
}
