"""EC2 on one machine: moto's API in front, real hosts behind it, and no way out.

    from tests.labs.aws.lab import AwsLab, obstacle

    with AwsLab(folder) as lab:
        lab.deny(spot=True, zone="us-west-2a")
        lab.run(["sky", "check", "aws"])

Everything lives in namespaces below one process, so that its death is the end of all of it:

    machine ── process 1 of the lab (init.py): own network, processes, mounts, name
               ├─ the API (api.py): moto, faults (faults.py), metadata service (metadata.py), a socket for the test
               ├─ instance i-… (hosts.py, machine.py): own network, processes, mounts, name, root; sshd
               └─ whatever a test runs inside: SkyPilot's API server, `launch`, …

A host's root is the machine's own file system below a layer with the account `ubuntu` and SkyPilot's runtime
(image.py), and a layer in memory. The interpreter that runs the tests, and the checkout, are visible at
their own paths, read-only: a training on a host starts with `sys.executable`, and nothing is installed for it.
"""
