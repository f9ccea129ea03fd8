from raysft.cli import main

main()
