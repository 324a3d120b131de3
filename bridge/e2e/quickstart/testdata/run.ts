// Runs one operation on the quickstart as an inline program:
//
//     node bin/run.js up|preview|refresh|destroy <directory of the project's settings>
import { LocalWorkspace } from "@pulumi/pulumi/automation";

import { deploy } from "./deploy";

async function main(operation: string, workDir: string) {
    const stack = await LocalWorkspace.selectStack({ stackName: "dev", projectName: "quickstart", program: deploy }, { workDir });
    const onOutput = (text: string) => { process.stdout.write(text); };
    switch (operation) {
        case "up": await stack.up({ onOutput }); break;
        case "preview": await stack.preview({ onOutput, expectNoChanges: true }); break;
        case "refresh": await stack.refresh({ onOutput, expectNoChanges: true }); break;
        case "destroy": await stack.destroy({ onOutput }); break;
        default: throw new Error(`no operation is called ${operation}`);
    }
}

main(process.argv[2], process.argv[3]).catch(err => {
    console.error(err);
    process.exit(1);
});
