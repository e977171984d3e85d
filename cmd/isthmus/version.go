package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/cmd/isthmus/client"
	"github.com/isthmus-mesh/isthmus/cmd/isthmus/serve"
)

func (e environment) versionCommand() *cobra.Command {
	var address, format string
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this program, and of a control plane",
		Long:  "Print the version of this program and, with --address, of the control plane there.",
		Example: `  isthmus version
  isthmus version --address http://127.0.0.1:8080 -o json`,
		Args: between(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			versions := struct {
				Client serve.Build  `json:"client"`
				Server *serve.Build `json:"server,omitempty"`
			}{Client: e.build}
			if address != "" {
				c, err := client.New(address)
				if err != nil {
					return usageError{err}
				}
				defer c.Close()
				o, err := c.Overview(cmd.Context())
				if err != nil {
					return err
				}
				versions.Server = &o.Build
			}
			switch format {
			case formatJSON:
				return e.printJSON(versions)
			case formatTable:
				text := fmt.Sprintf("client: %s\n", e.build.Line())
				if versions.Server != nil {
					text += fmt.Sprintf("server: %s\n", versions.Server.Line())
				}
				return e.print(text)
			}
			return unknownFormat(format, formatTable, formatJSON)
		},
	}
	cmd.Flags().StringVar(&address, "address", "", "control plane to ask for its version too")
	cmd.Flags().StringVarP(&format, "output", "o", formatTable, "table or json")
	return cmd
}
