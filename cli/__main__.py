from xmafast.cli.app import main

main()
